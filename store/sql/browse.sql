-- What the trace browser reads.

-- name: browse_traces
-- Newest first, one page after the given (created_at, trace_id); null filters let everything through.
select
    trace_id, created_at, dataset, split, template, teacher, model, sample_index, accepted, failed_rules,
    target_rank, new_rank, reasoning, error
from trace_browser
where ($dataset is null or dataset = $dataset)
    and ($split is null or split = $split)
    and ($template is null or template = $template)
    and ($teacher is null or teacher = $teacher)
    and ($accepted is null or accepted = $accepted)
    and ($rule is null or list_contains(failed_rules, $rule))
    and ($text is null or contains(lower(reasoning), lower($text)))
    and ($after_time is null or (created_at, trace_id) < ($after_time, $after_id))
order by created_at desc, trace_id desc
limit $limit

-- name: browse_choices
-- The values that people can filter by.
select 'dataset' as filter, dataset as value from prompts group by all
union all
select 'template', template from prompts group by all
union all
select 'teacher', teacher from traces group by all
union all
select 'rule', rule from verdicts group by all
order by all

-- name: browse_trace
select
    traces.*, prompts.dataset, prompts.sid_version, prompts.template, prompts.strategy, prompts.messages,
    prompts.list_id, candidate_lists.split, candidate_lists.user_id, candidate_lists.target_rank
from traces
join prompts using (prompt_id)
join candidate_lists using (list_id)
where trace_id = $trace_id

-- name: browse_verdicts
select rule, rule_version, passed, reason, detail
from verdicts_current
where trace_id = $trace_id
order by passed, rule

-- name: browse_labels
select annotator, label, tags, note, created_at from labels_current where trace_id = $trace_id order by created_at
