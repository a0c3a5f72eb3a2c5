-- Statements for the page Agreement: the current judgements of people, compared with those of rules and rulesets.

-- name: agreement_labels
-- The current labels of all queues, or of a single one. `skip` is not a judgement. Few traces have labels, so their
-- texts are read after the traces are found. A trace that was never judged passes and fails no rule, and every ruleset
-- refuses it.
with standing as materialized (
    select trace_id, annotator, label, seconds, created_at from labels_current where $queue_id::varchar is null
    union all
    select trace_id, annotator, label, seconds, created_at
    from labels.standing_labels
    where queue_id = $queue_id
),
labelled as materialized (
    select * from traces where trace_id in (select trace_id from standing where label <> 'skip')
),
chosen as (
    select trace_id, outcome
    from labelled
    where true
    -- and: conditions
)
select
    trace_id, annotator, label, seconds, created_at,
    coalesce(passed_rules, []) as passed_rules,
    coalesce(failed_rules, []) as failed_rules,
    coalesce(judged_outcomes.rulesets, []) as accepted_by,
    list_filter(known, lambda ruleset: not list_contains(coalesce(judged_outcomes.rulesets, []), ruleset)) as refused_by
from standing
join chosen using (trace_id)
left join judged_outcomes using (outcome)
cross join (select list(name order by name) as known from rulesets_current)
where label <> 'skip'
order by trace_id, annotator

-- name: agreement_queues
-- Queues that have labels, newest first.
select queue_id, name
from labels.label_queues
where queue_id in (select queue_id from labels.label_events)
order by created_at desc, queue_id
