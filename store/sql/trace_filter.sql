-- Conditions that users filter traces by (curate/traces/filter.py). Each is inserted where a statement over `traces`
-- has the line "and: conditions".

-- name: where_by_teachers
-- Leave out rollouts of students, because one training can write more than all teachers together.
teacher <> 'student'

-- name: where_dataset
dataset = $dataset

-- name: where_split
split = $split

-- name: where_strategy
strategy = $strategy

-- name: where_template
template = $template

-- name: where_teacher
teacher = $teacher

-- name: where_model
model = $model

-- name: where_temperature
temperature = $temperature

-- name: where_run_id
run_id = $run_id

-- name: where_step
trace_id in (select trace_id from rollouts where step = $step)

-- name: where_kept
trace_id in (select trace_id from rollouts where kept = $kept)

-- name: where_user_id
user_id = $user_id

-- name: where_list_id
list_id = $list_id

-- name: where_prompt_id
prompt_id = $prompt_id

-- name: where_passes
outcome in (select outcome from outcomes where list_has_all(passed_rules, ruleset_rules($passes)))

-- name: where_fails
-- Traces without verdicts fail too, because their requests failed.
outcome is null or outcome in (select outcome from outcomes where not list_has_all(passed_rules, ruleset_rules($fails)))

-- name: where_rule
outcome in (select outcome from outcomes where list_contains(failed_rules, $rule))

-- name: where_reason
outcome in (select outcome from outcomes where list_contains(reasons, $reason))

-- name: where_first_failed_rule
case $first_failed_rule
    when 'answered' then error is not null
    else outcome in (select outcome from judged_outcomes where first_failed_rule = $first_failed_rule)
end

-- name: where_copied
copied = $copied

-- name: where_target_rank
coalesce(target_rank, 0) = $target_rank

-- name: where_predicted_rank
coalesce(predicted_rank, 0) = $predicted_rank

-- name: where_label
case $label
    when 'none' then trace_id not in (select trace_id from labels_current)
    when 'any' then trace_id in (select trace_id from labels_current)
    when 'split' then trace_id in (
        select trace_id from labels_current where label in ('good', 'bad') group by trace_id having count(distinct label) > 1
    )
    else trace_id in (select trace_id from labels_current where label = $label)
end

-- name: where_annotator
trace_id in (select trace_id from labels_current where annotator = $annotator)

-- name: where_min_pass_rate
group_id in (select group_id from pass_rates where pass_rate >= $min_pass_rate)

-- name: where_max_pass_rate
group_id in (select group_id from pass_rates where pass_rate <= $max_pass_rate)

-- name: where_since
created_at >= $since

-- name: where_until
created_at < $until

-- name: where_text
contains(lower(coalesce(reasoning, completion, error, '')), lower($text))

-- name: where_pattern
regexp_matches(coalesce(reasoning, completion, error, ''), $pattern, 'i')

-- name: where_before
-- Rows after the last one of the previous page. The first condition alone can be used by the scan.
created_at <= $before_time and (created_at, trace_id) < ($before_time, $before_id)

-- name: check_pattern
-- Raises an error if the pattern is not a regular expression.
select regexp_matches('', $pattern, 'i')

-- name: rules_of_store
-- Every rule that judged a trace or that a ruleset contains.
select distinct rule
from (
    select unnest(passed_rules || failed_rules) as rule from outcomes
    union all
    select unnest(rules) from rulesets_current
)
order by rule
