-- Idempotent inserts. `batch` is the frame given to Session.put. Rows whose key exists already do not change.

-- name: put_datasets
insert into datasets by name from batch anti join datasets using (dataset)

-- name: append_items
-- Only for a dataset that is new in the same transaction.
insert into items by name from batch

-- name: append_interactions
insert into interactions by name from batch

-- name: put_sid_versions
insert into sid_versions by name from batch anti join sid_versions using (dataset, sid_version)

-- name: append_semantic_ids
-- Only for a version that is new in the same transaction.
insert into semantic_ids by name from batch

-- name: append_sid_measures
insert into sid_measures by name from batch

-- name: put_candidate_lists
insert into candidate_lists by name from batch anti join candidate_lists using (list_id)

-- name: put_evidence
insert into evidence by name from batch anti join evidence using (list_id)

-- name: fill_similarities
-- Fill in similarities of evidence that was stored without them.
update evidence
set text_last = batch.text_last, text_mean = batch.text_mean, text_max = batch.text_max,
    copurchase_last = batch.copurchase_last, copurchase_mean = batch.copurchase_mean,
    copurchase_max = batch.copurchase_max
from batch
where evidence.list_id = batch.list_id and evidence.rank = batch.rank and evidence.text_last is null

-- name: put_oracle_rankings
insert into oracle_rankings by name from batch anti join oracle_rankings using (list_id)

-- name: put_templates
insert into templates by name from batch anti join templates using (template, sha256)

-- name: put_prompts
insert into prompts by name from batch anti join prompts using (prompt_id)

-- name: append_prompts
-- Only for prompts that are not in the store.
insert into prompts by name from batch

-- name: find_new_traces
-- The traces of the batch that are not in the store. A trace belongs to the group of its prompt, teacher, model and
-- temperature. Searching for a few groups, which are numbers, takes a fifth of the time of searching for ids among
-- millions.
create or replace temp table new_traces as
with grouped as (
    select *, md5_number_lower(concat_ws(chr(31), prompt_id, teacher, model, temperature)) as group_id
    from batch
),
stored as materialized (
    select trace_id from traces where group_id in (select group_id from grouped)
)
from grouped anti join stored using (trace_id)

-- name: append_new_traces
-- Insert new_traces, with the outcomes of batch_outcomes, which judge_batch made.
insert into traces by name
select
    new_traces.*,
    prompts.list_id,
    prompts.dataset,
    candidate_lists.split,
    candidate_lists.user_id,
    prompts.template,
    prompts.strategy,
    candidate_lists.target_item_id,
    candidate_lists.target_rank,
    nullif(list_position(ranking, candidate_lists.target_item_id), 0) as predicted_rank,
    ranking = candidate_lists.item_ids as copied,
    batch_outcomes.outcome
from new_traces
-- Outer joins, so that a trace without its prompt or list violates a constraint and is not lost silently.
left join prompts using (prompt_id)
left join candidate_lists using (list_id)
left join batch_outcomes using (trace_id)

-- name: delete_failed_traces
-- A failed attempt is replaced by a later answer to the same request, or by the error that the request is refused for
-- good.
delete from traces
using batch
where traces.trace_id = batch.trace_id
    and traces.error is not null
    and (
        batch.error is null
        or (batch.error_kind in ('moderated', 'too_long') and traces.error_kind is distinct from batch.error_kind)
    )

-- name: judge_batch
-- The combined result of all rules for each trace with verdicts. Traces with the same outcome share one id.
create or replace temp table batch_outcomes as
select
    trace_id,
    md5_number_lower(string_agg(concat_ws(chr(31), rule, passed, reason), chr(30) order by rule)) as outcome,
    coalesce(list(rule order by rule) filter (passed), []) as passed_rules,
    coalesce(list(rule order by rule) filter (not passed), []) as failed_rules,
    coalesce(list(coalesce(reason, '') order by rule) filter (not passed), []) as reasons
from batch
group by trace_id

-- name: put_batch_outcomes
insert into outcomes
select outcome, any_value(passed_rules), any_value(failed_rules), any_value(reasons)
from batch_outcomes
anti join outcomes using (outcome)
group by outcome

-- name: update_outcomes
-- The times limit the search for the traces of batch_outcomes.
update traces
set outcome = batch_outcomes.outcome
from batch_outcomes
where traces.created_at between $first_time and $last_time
    and traces.trace_id = batch_outcomes.trace_id and traces.outcome is distinct from batch_outcomes.outcome

-- name: update_readings
-- Store a new reading of completions, for which the parser returned something else when they were stored.
update traces
set
    reasoning = batch.reasoning,
    ranking = batch.ranking,
    predicted_rank = nullif(list_position(batch.ranking, traces.target_item_id), 0),
    copied = batch.ranking = candidate_lists.item_ids
from batch, candidate_lists
where traces.created_at = batch.created_at
    and traces.trace_id = batch.trace_id
    and traces.list_id = candidate_lists.list_id

-- name: append_verdicts_of_new_traces
-- A trace is stored together with its verdicts, so stored traces have them already.
insert into verdicts by name from batch semi join new_traces using (trace_id)

-- name: append_rollouts_of_new_traces
insert into rollouts by name from batch semi join new_traces using (trace_id)

-- name: put_verdicts
-- Verdicts are stored with the time of their trace, so that a batch is compared only with verdicts of the same period.
insert into verdicts by name
from batch
anti join (
    select trace_id, rule, rule_version
    from verdicts
    where created_at between (select min(created_at) from batch) and (select max(created_at) from batch)
) using (trace_id, rule, rule_version)

-- name: put_snapshots
insert into snapshots by name from batch anti join snapshots using (name, version)

-- name: put_runs
insert into runs by name from batch anti join runs using (run_id)

-- name: put_evaluations
insert into evaluations by name from batch anti join evaluations using (run_id, dataset, split, ranker, metric)

-- name: put_evaluation_differences
insert into evaluation_differences by name
from batch
anti join evaluation_differences using (run_id, dataset, split, ranker, other, metric)

-- name: put_evaluation_slices
insert into evaluation_slices by name
from batch
anti join evaluation_slices using (run_id, dataset, split, ranker, slice, bucket, metric)

-- name: put_rankings
insert into rankings by name from batch anti join rankings using (run_id, list_id, ranker)

-- name: put_run_metrics
insert into run_metrics by name from batch anti join run_metrics using (run_id, step, metric)
