-- Counts for the page Overview. Traces are first grouped by outcome, so that rules are looked up in a table of a few
-- rows. Rows from $end on were stored after the page began to read, and are left out.

-- name: overview_end
select coalesce(max(rowid), -1) + 1 from traces

-- name: overview_attempts
-- Attempts grouped by all properties of a count. `*_counted` is the number of attempts for which the figure is known.
with cells as (
    select
        template, teacher, model, temperature, outcome, error is null as answered, copied,
        count(*) as attempts,
        sum(prompt_tokens)::bigint as prompt_tokens, count(prompt_tokens) as prompt_tokens_counted,
        sum(completion_tokens)::bigint as completion_tokens, count(completion_tokens) as completion_tokens_counted,
        sum(cost_usd) as cost_usd, count(cost_usd) as cost_usd_counted
    from traces
    where rowid < $end
    -- and: conditions
    group by template, teacher, model, temperature, outcome, answered, copied
)
select
    cells.* exclude (outcome, answered),
    case when answered then first_failed_rule else 'answered' end as first_failed_rule,
    coalesce(list_contains(rulesets, 'paper'), false) as accepted
from cells
left join judged_outcomes using (outcome)

-- name: overview_prompts
-- Counting hashes takes two thirds of the time of counting texts.
select count(distinct hash(prompt_id))
from traces
where rowid < $end
-- and: conditions

-- name: overview_labelled
select count(*)
from traces
where rowid < $end and trace_id in (select trace_id from labels_current)
-- and: conditions

-- name: overview_span
select min(created_at), max(created_at)
from traces
where rowid < $end
-- and: conditions

-- name: overview_losses
-- Traces by time and first failed rule, which is NULL if no rule failed.
with cells as (
    select
        time_bucket(to_seconds($bucket_seconds), created_at) as start, outcome, error is null as answered,
        count(*) as traces
    from traces
    where rowid < $end
    -- and: conditions
    group by start, outcome, answered
)
select
    start,
    start + to_seconds($bucket_seconds) as "end",
    case when answered then first_failed_rule else 'answered' end as first_failed_rule,
    sum(traces)::bigint as traces
from cells
left join judged_outcomes using (outcome)
group by all
order by start, first_failed_rule

-- name: overview_groups
-- Like the view pass_rates, for groups with at least one matching trace. One scan is enough; with the view, it takes
-- two.
select attempts, accepted, count(*) as groups
from (
    select count(*) filter (answered) as attempts, count(*) filter (accepted) as accepted
    from (
        select
            group_id,
            error is null as answered,
            outcome in (select outcome from judged_outcomes where list_contains(rulesets, 'paper')) as accepted,
            true
            -- and: conditions
            as fits
        from traces
        where rowid < $end
    )
    group by group_id
    having bool_or(fits)
)
where attempts > 0
group by attempts, accepted

-- name: overview_moves
select coalesce(target_rank, 0) as target_rank, coalesce(predicted_rank, 0) as predicted_rank, count(*) as traces
from traces
where rowid < $end
-- and: conditions
group by all
order by all
