-- name: evaluated
-- All metrics of a dataset.
select split, ranker, metric, value, n from evaluations where dataset = $dataset

-- name: lists_until_limit
-- Lists in the order of their ids until `limit` of them contain their target, with the properties that slices are made
-- by.
with chosen as (
    select list_id, target_rank, cast(len(history) as integer) as history_length, fold
    from candidate_lists
    where dataset = $dataset and split = $split and pre_ranker = $pre_ranker
    qualify count(target_rank) over (order by list_id) - (target_rank is not null)::integer < $limit
)
select chosen.list_id, target_rank, history_length, fold, evidence.popularity as target_popularity
from chosen
left join evidence on evidence.list_id = chosen.list_id and evidence.rank = chosen.target_rank
order by chosen.list_id

-- name: oracle_orders
select history[-20:] as history, oracle_rankings.item_ids
from oracle_rankings
join candidate_lists using (list_id)
where dataset = $dataset and pre_ranker = $pre_ranker and split = $split

-- name: evaluation_runs
-- Evaluations that stored their rankings, newest first. The statements below return metrics in the order of the
-- rankers.
select run_id, dataset, settings, started_at, ended_at
from runs
where dataset = $dataset
    and kind = 'evaluate'
    and run_id in (select run_id from rankings)
    and ($run_id is null or run_id = $run_id)
order by started_at desc, run_id

-- name: evaluation_metrics
select run_id, dataset, split, ranker, metric, value, low, high, n
from evaluations
join runs using (run_id, dataset)
where dataset = $dataset and run_id in (select run_id from rankings) and ($run_id is null or run_id = $run_id)
order by started_at desc, run_id, list_position(json_keys(settings, '$.rankers'), ranker), metric

-- name: evaluation_differences
select run_id, dataset, split, ranker, other, metric, value, low, high, n
from evaluation_differences
join runs using (run_id, dataset)
where dataset = $dataset and ($run_id is null or run_id = $run_id)
order by
    started_at desc,
    run_id,
    list_position(json_keys(settings, '$.rankers'), other),
    list_position(json_keys(settings, '$.rankers'), ranker)

-- name: evaluation_slices
select run_id, dataset, split, ranker, slice, bucket, metric, value, low, high, n
from evaluation_slices
join runs using (run_id, dataset)
where dataset = $dataset and ($run_id is null or run_id = $run_id)
order by
    started_at desc,
    run_id,
    slice,
    cast(regexp_extract(bucket, '^[0-9]+') as integer),
    list_position(json_keys(settings, '$.rankers'), ranker),
    metric

-- name: evaluated_datasets
-- Datasets with an evaluation that stored its rankings.
select distinct dataset from evaluations where run_id in (select run_id from rankings) order by dataset
