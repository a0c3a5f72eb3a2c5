-- How near a candidate is to its history: cosines of item texts, and of what other shoppers bought together.
-- Lists made before this have none; `gr2 candidates` fills them in.
alter table evidence add column text_last float;
alter table evidence add column text_mean float;
alter table evidence add column text_max float;
alter table evidence add column copurchase_last float;
alter table evidence add column copurchase_mean float;
alter table evidence add column copurchase_max float;
