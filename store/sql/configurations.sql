-- Configurations of sampling, and the results of one configuration by list, for the page Compare.

-- name: configurations
-- Configurations, the one with the most traces first.
select template, strategy, teacher, model, temperature, count(*) as traces
from traces
group by all
order by traces desc, template, strategy, teacher, model, temperature

-- name: configuration_lists
-- The results of one configuration for each list that it tried. A failed request is not an attempt.
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
