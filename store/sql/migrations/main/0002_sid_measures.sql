-- What semantic IDs are worth, and whether training may use them. Versions of before are judged by the paper's bar.
alter table sid_versions add column fit_for_training boolean default false;
update sid_versions set fit_for_training = uniqueness >= 0.99;

create table sid_measures (
    dataset varchar not null,
    sid_version varchar not null,
    measure varchar not null,
    level integer,
    value double not null
);
