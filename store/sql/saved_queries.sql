-- The page SQL: tables and columns, examples, and the queries that users saved.

-- name: schema_columns
-- Columns of the store's tables and views, then those of the labels.
select
    if(database_name = 'labels', 'labels.', '') || table_name as "table",
    column_name as "column",
    data_type as "type"
from duckdb_columns()
where not internal
    and database_name in (current_database(), 'labels')
    and not (database_name = 'labels' and table_name in ('schema_migrations', 'schema_state'))
order by database_name = 'labels', table_name not in (select view_name from duckdb_views()), table_name, column_index

-- name: schema_macros
select function_name, parameters
from duckdb_functions()
where not internal and database_name = current_database() and function_type in ('macro', 'table_macro')
order by function_name

-- name: save_query
insert into saved_queries (name, query, author, created_at) values ($name, $query, $author, $created_at)

-- name: saved_queries
-- The newest query of each name, by the order in which they were saved. Removed queries are left out.
select name, query, author, created_at
from (
    from labels.saved_queries
    qualify row_number() over (partition by name order by rowid desc) = 1
)
where query <> ''
order by lower(name), name

-- name: example_funnel
-- From attempts to accepted traces (ruleset paper), by template and teacher.
select
    template,
    teacher,
    split,
    count(*) as attempts,
    count(*) filter (error is null) as answered,
    count(*) filter (ranking is not null) as parsed,
    count(*) filter (accepted) as accepted,
    round(avg(accepted::int), 4) as accepted_share
from trace_browser
group by all
order by template, teacher, split

-- name: example_hardest_prompts
-- Prompts with many attempts and few accepted traces. Rejection sampling drops them silently.
select prompt_id, dataset, split, template, teacher, temperature, attempts, accepted, pass_rate
from pass_rates
order by pass_rate, attempts desc, prompt_id
limit 200

-- name: example_why_traces_fail
-- The number of traces that each rule rejects, and the reasons. A trace can fail several rules.
with outcome_counts as (
    select teacher, outcome, count(*) as traces
    from traces
    where outcome is not null
    group by all
)
select reason, teacher, rule, sum(traces) as traces
from (
    select teacher, traces, unnest(failed_rules) as rule, unnest(reasons) as reason
    from outcome_counts
    join outcomes using (outcome)
)
group by all
order by traces desc, reason, teacher

-- name: example_target_before_and_after
-- The rank of the next item in the candidate list, and its rank in the traces.
select target_rank as before, predicted_rank as after, count(*) as traces
from traces
where target_rank is not null and predicted_rank is not null and teacher <> 'student'
group by all
order by before, after

-- name: example_cost_per_accepted_trace
-- The cost of an accepted trace. NULL if the price or the tokens are not known.
select
    model,
    template,
    count(*) as attempts,
    count(*) filter (accepted) as accepted,
    sum(cost_usd) / nullif(count(*) filter (accepted), 0) as cost_usd_per_accepted,
    sum(completion_tokens) / nullif(count(*) filter (accepted), 0) as completion_tokens_per_accepted,
    sum(latency_ms) / 1000 / nullif(count(*) filter (accepted), 0) as seconds_per_accepted
from trace_browser
group by all
order by cost_usd_per_accepted, model, template

-- name: example_labels_against_ruleset
-- Labels of people on the traces that each ruleset accepts, and on those that it rejects.
select
    label,
    known.name as ruleset,
    if(coalesce(list_contains(judged_outcomes.rulesets, known.name), false), 'accepted', 'rejected') as verdict,
    count(*) as labels
from labels_current
join traces using (trace_id)
left join judged_outcomes using (outcome)
cross join (select name from rulesets_current where name <> 'answered') as known
group by all
order by label, ruleset, verdict
