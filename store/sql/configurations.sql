-- Ways to make traces, and what one of them made of each list, for the page Compare.

-- name: configurations
-- Ways to make traces, those with most first.
select template, strategy, teacher, model, temperature, count(*) as traces
from traces
group by all
order by traces desc, template, strategy, teacher, model, temperature

-- name: configuration_lists
-- What one configuration made of each list that it tried. A request that failed is no attempt.
select
    list_id,
    any_value(target_rank) as target_rank,
    count(*) as attempts,
    count(*) filter (accepted) as accepted,
    avg(coalesce(accepted, false)::integer) filter (sample_index = 0) as first_accepted,
    avg(predicted_rank) filter (sample_index = 0) as first_rank
from traces
left join (select outcome, list_contains(rulesets, 'paper') as accepted from judged_outcomes) using (outcome)
where error is null
    and template = $template
    and strategy = $strategy
    and teacher = $teacher
    and model = $model
    and temperature = $temperature
group by list_id
