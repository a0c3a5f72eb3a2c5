-- What a failed request means for its prompt: whether later runs ask again.
alter table traces add column error_kind varchar;
update traces set error_kind = 'failed' where error is not null;
