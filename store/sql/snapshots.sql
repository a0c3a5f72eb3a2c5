-- name: snapshot_rows
-- The traces that a selection takes, but for those that somebody labelled bad.
select
    traces.trace_id,
    traces.prompt_id,
    prompts.list_id,
    candidate_lists.split,
    candidate_lists.user_id,
    candidate_lists.position,
    prompts.sid_version,
    prompts.template,
    prompts.template_sha256,
    prompts.strategy,
    prompts.knowledge_priming,
    traces.teacher,
    traces.model,
    traces.temperature,
    traces.completion,
    traces.reasoning,
    traces.ranking,
    pass_rates.pass_rate
from accepted_traces($policy) as traces
join prompts using (prompt_id)
join candidate_lists using (list_id)
join pass_rates
    on pass_rates.prompt_id = traces.prompt_id
    and pass_rates.teacher = traces.teacher
    and pass_rates.model = traces.model
    and pass_rates.temperature = traces.temperature
where prompts.dataset = $dataset
    and list_contains($splits, candidate_lists.split)
    and ($template is null or prompts.template = $template)
    and ($teacher is null or traces.teacher = $teacher)
    and traces.trace_id not in (select trace_id from labels_current where label = 'bad')
order by traces.trace_id

-- name: test_targets
-- Which of these (user_id, position) pairs, given as `batch`, are test interactions.
select interactions.user_id, interactions.position
from interactions
where dataset = $dataset
    and split = 'test'
    and list_contains($keys, user_id || chr(31) || position)
order by all
limit 5

-- name: template_text
select text from templates where template = $template and sha256 = $sha256

-- name: label_watermark
-- What was known of people's labels on a data set.
select count(*) as events, coalesce(max(label_events.created_at)::varchar, '') as newest
from labels.label_events as label_events
join traces using (trace_id)
join prompts using (prompt_id)
where prompts.dataset = $dataset

-- name: snapshot_list
select name, version, kind, rows, created_at, path from snapshots order by name, created_at

-- name: snapshot_versions
select version, path from snapshots where name = $name order by created_at desc
