-- name: status_datasets
select
    datasets.dataset,
    datasets.source,
    (select count(*) from items where items.dataset = datasets.dataset) as items,
    (select count(distinct user_id) from interactions where interactions.dataset = datasets.dataset) as users,
    (select count(*) from interactions where interactions.dataset = datasets.dataset) as interactions,
    (
        select round(arg_max(uniqueness, rowid), 4) from sid_versions where sid_versions.dataset = datasets.dataset
    ) as sid_uniqueness,
    (
        select count(*) from candidate_lists where candidate_lists.dataset = datasets.dataset
    ) as lists,
    (
        select count(*) from candidate_lists
        where candidate_lists.dataset = datasets.dataset and target_rank is not null
    ) as lists_with_target
from datasets
order by datasets.dataset

-- name: status_rankers
-- Metrics over all lists, and (conditional) over those with their target. Of several evaluations, the one over the most
-- lists is used.
pivot (
    select dataset, split, ranker, metric, value
    from evaluations
    join runs using (run_id, dataset)
    qualify row_number() over (partition by evaluations.dataset, split, ranker, metric order by n desc, started_at desc) = 1
)
on metric in (
    'recall_at_5', 'recall_at_10', 'ndcg_at_5', 'conditional_recall_at_1', 'conditional_recall_at_5',
    'conditional_ndcg_at_5'
)
using first(round(value, 4))
group by dataset, split, ranker
order by dataset, split, ranker

-- name: status_funnel
select dataset, split, template, teacher, prompts, attempts, answered, parsed, accepted, labelled, cost_usd
from acceptance_funnel

-- name: status_reasons
select dataset, template, teacher, rule, reason, sum(traces) as traces
from (
    select dataset, template, teacher, unnest(failed_rules) as rule, unnest(reasons) as reason, traces
    from (select dataset, template, teacher, outcome, count(*) as traces from traces where teacher <> 'student' group by all)
    join outcomes using (outcome)
)
group by all
order by traces desc, dataset, template, teacher, rule, reason
limit 20

-- name: status_rollouts
select
    dataset,
    model as student,
    template,
    max(step) as steps,
    count(*) as rollouts,
    count(*) filter (kept) as kept,
    count(*) filter (list_contains(failed_rules, 'parsed') or list_contains(failed_rules, 'permutation')) as invalid,
    round(avg(reward), 4) as mean_reward
from rollout_browser
group by dataset, student, template, run_id
order by max(created_at) desc

-- name: status_errors
-- Errors that differ only in their numbers are counted as one.
select dataset, teacher, model, error_kind as kind, min(error) as error, count(*) as requests
from traces
where error is not null
group by dataset, teacher, model, error_kind, regexp_replace(error, '[0-9]+', '#', 'g')
order by requests desc, dataset, teacher, model, kind, error
limit 10
