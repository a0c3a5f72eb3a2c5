-- Statements that read traces for the trace browser.

-- name: browse_traces
-- Newest first. The page is selected by narrow columns, and texts are then read only for its traces.
with page as (
    select trace_id, created_at
    from traces
    where true
    -- and: conditions
    order by created_at desc, trace_id desc
    limit $limit
)
select
    trace_id, created_at, dataset, split, template, strategy, teacher, model, temperature, sample_index, group_id,
    coalesce(list_contains(rulesets, 'paper'), false) as accepted, first_failed_rule, coalesce(failed_rules, []) as failed_rules,
    target_rank, predicted_rank, copied, left(reasoning, 400) as reasoning, left(error, 400) as error, step, reward
from traces
semi join page using (created_at, trace_id)
left join judged_outcomes using (outcome)
left join (select trace_id, step, reward from rollouts) using (trace_id)
order by created_at desc, trace_id desc

-- name: count_traces
select count(*)
from traces
where true
-- and: conditions

-- name: search_windows
-- The number of traces, and moments before which about the given shares of them were stored.
select count(*) as traces, approx_quantile(created_at, $shares::float[]) as edges from traces

-- name: browse_choices
-- The values that users can filter by.
select *
from (
    select
        list_sort(list(distinct dataset)) as dataset,
        list_sort(list(distinct split)) as split,
        list_sort(list(distinct strategy)) as strategy,
        list_sort(list(distinct template)) as template,
        list_sort(list(distinct teacher)) as teacher,
        list_sort(list(distinct model)) as model,
        list_sort(list(distinct temperature)) as temperature
    from traces
),
    (select list_sort(list(distinct rule)) as rule from (select unnest(failed_rules) as rule from outcomes)),
    (
        select list_sort(list(distinct first_failed_rule)) as first_failed_rule
        from judged_outcomes
        where first_failed_rule is not null
    ),
    (select list_sort(list(distinct reason)) as reason from (select unnest(reasons) as reason from outcomes)),
    (select list_sort(list(distinct annotator)) as annotator from labels_current),
    (select list_sort(list(name)) as ruleset from rulesets_current)

-- name: browse_trace
select traces.*, prompts.sid_version, step, rewards, reward, advantage, kept
from traces
join prompts using (prompt_id)
left join (select * exclude (run_id) from rollouts) using (trace_id)
where trace_id = $trace_id
-- and: conditions

-- name: made_at
-- With the time of a trace, the search for it is five times as fast.
created_at = $made_at

-- name: prompt_messages
select messages from prompts where prompt_id = $prompt_id

-- name: browse_verdicts
select rule, rule_version, passed, reason, detail
from verdicts_current
where created_at = $created_at and trace_id = $trace_id
order by passed, rule

-- name: browse_labels
select annotator, label, tags, note, seconds, created_at
from labels_current
where trace_id = $trace_id
order by created_at
