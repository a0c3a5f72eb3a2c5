-- All attempts on one candidate list, for the page Compare.

-- name: compared_list
-- The candidate list with this id, or that of the prompt or trace with this id.
select list_id from candidate_lists where list_id = $id
union
select list_id from prompts where prompt_id = $id
union
select list_id from traces where trace_id = $id

-- name: list_attempts
-- Attempts on one list, beginning with the trace $id and the first samples of each configuration. The counts are of all
-- attempts. Rollouts are included only if $id is a rollout, and then only those of its run.
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
-- Any prompt that shows the list. It gives the semantic IDs.
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
