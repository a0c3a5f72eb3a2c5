-- name: snapshot_traces
-- The traces that a selection takes, but for those that somebody labelled bad.
select
    traces.trace_id,
    traces.prompt_id,
    traces.list_id,
    traces.split,
    traces.user_id,
    candidate_lists.position,
    prompts.sid_version,
    traces.template,
    prompts.template_sha256,
    traces.strategy,
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
join candidate_lists on candidate_lists.list_id = traces.list_id
join pass_rates using (group_id)
where traces.dataset = $dataset
    and list_contains($splits, traces.split)
    and ($template is null or traces.template = $template)
    and ($teacher is null or traces.teacher = $teacher)
    and traces.trace_id not in (select trace_id from labels_current where label = 'bad')
order by traces.trace_id

-- name: snapshot_lists
-- The lists that hold their target, with the pass rate of the one model that tried a prompt most often.
with tried as (
    select
        pass_rates.list_id,
        arg_max(pass_rates.pass_rate, (attempts, pass_rates.model, -temperature)) as pass_rate,
        arg_max(
            pass_rates.teacher || '/' || pass_rates.model || ' at temperature ' || temperature,
            (attempts, pass_rates.model, -temperature)
        ) as pass_rate_model,
        max(attempts)::integer as attempts
    from pass_rates
    join prompts using (prompt_id)
    where pass_rates.dataset = $dataset
        and prompts.sid_version = $sid_version
        and prompts.template = $template
        and prompts.template_sha256 = $template_sha256
        and ($teacher is null or pass_rates.teacher = $teacher)
    group by pass_rates.list_id
)
select list_id, split, user_id, position, target_rank, pass_rate, pass_rate_model, attempts
from candidate_lists
left join tried using (list_id)
where dataset = $dataset
    and pre_ranker = $pre_ranker
    and list_contains($splits, split)
    and target_rank is not null
order by list_id

-- name: catalogue_with_sids
select items.item_id, semantic_ids.text as sid, items.title, items.categories, items.brand
from items
join semantic_ids using (dataset, item_id)
where items.dataset = $dataset and semantic_ids.sid_version = $sid_version
order by items.item_id

-- name: snapshot_sequences
-- What each user took, up to and with the interactions of a split; users with one item have no sequence.
select
    user_id,
    chosen.split,
    list(item_id order by position) as item_ids,
    max(position) filter (interactions.split = chosen.split) as last_position
from interactions
join (select unnest($splits) as split) as chosen
    on chosen.split = interactions.split or (chosen.split <> 'train' and interactions.split = 'train')
where dataset = $dataset
group by user_id, chosen.split
having count(*) > 1 and count(*) filter (interactions.split = chosen.split) > 0
order by chosen.split, user_id

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
