-- All attempts on one candidate list, for the page Compare.

-- name: compared_list
-- The candidate list of that id, or of the prompt or trace of that id.
select list_id from candidate_lists where list_id = $id
union
select list_id from prompts where prompt_id = $id
union
select list_id from traces where trace_id = $id

-- name: list_attempts
-- Attempts on one list, the first samples of each configuration first; the counts are of all of them. Rollouts are among
-- them where $id is one, and then those of its run.
select
    trace_id, prompt_id, group_id, template, strategy, teacher, model, temperature, sample_index, ranking, target_rank,
    predicted_rank, completion_tokens, error is not null as unanswered,
    coalesce(list_contains(rulesets, 'paper'), false) as accepted, first_failed_rule, failed_rules,
    count(*) over () as all_attempts, count(*) filter (accepted) over () as all_accepted
from traces
left join judged_outcomes using (outcome)
where list_id = $list_id
    and (teacher <> 'student' or run_id = (select run_id from traces where trace_id = $id))
order by trace_id <> $id, sample_index, template, teacher, model, temperature, trace_id
limit $limit

-- name: list_prompt
-- Any prompt that shows the list, for its semantic IDs.
select dataset, sid_version, split, user_id
from prompts
join candidate_lists using (dataset, list_id)
where list_id = $list_id
order by prompt_id
limit 1

-- name: attempt_labels
select trace_id, list(label order by label) as labels
from labels_current
where trace_id in (select unnest($trace_ids))
group by trace_id
