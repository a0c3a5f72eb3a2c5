-- name: sid_version_names
-- Newest first, by the order in which they were stored, because a clock may have been set back.
select sid_version from sid_versions where dataset = $dataset and fit_for_training order by rowid desc

-- name: pre_ranker_names
select pre_ranker from candidate_lists where dataset = $dataset group by pre_ranker order by pre_ranker

-- name: open_lists
-- Lists that need more samples, with the sample indexes that were answered and the number of accepted samples. A list
-- with a failure of a kind in for_good needs none. The limit selects lists before finished ones are left out, so that
-- the same command continues with the same lists.
with chosen as (
    select list_id
    from candidate_lists
    where dataset = $dataset and split = $split and pre_ranker = $pre_ranker
        and (($with_target and target_rank is not null) or ($without_target and target_rank is null and len(item_ids) > 0))
    order by list_id
    limit $limit
),
done as (
    select
        traces.list_id,
        list(sample_index order by sample_index) filter (error is null) as answered,
        count(*) filter (
            error is null
            and (len($rules) = 0 or outcome in (select outcome from outcomes where list_has_all(passed_rules, $rules)))
        ) as accepted,
        count(*) filter (list_contains($for_good, error_kind)) as refused
    from traces
    join prompts using (prompt_id)
    where traces.dataset = $dataset
        and prompts.sid_version = $sid_version
        and traces.template = $template
        and prompts.template_sha256 = $template_sha256
        and prompts.knowledge_priming = $knowledge_priming
        and traces.teacher = $teacher
        and traces.model = $model
        and traces.temperature = $temperature
        and traces.max_tokens = $max_tokens
    group by traces.list_id
),
prompted as (
    select list_id
    from prompts
    where dataset = $dataset
        and sid_version = $sid_version
        and template = $template
        and template_sha256 = $template_sha256
        and knowledge_priming = $knowledge_priming
)
select
    list_id,
    coalesce(answered, []) as answered,
    coalesce(accepted, 0) as accepted,
    list_id in (select list_id from prompted) as has_prompt,
    (select count(*) from chosen) as chosen_lists
from chosen
left join done using (list_id)
where coalesce(accepted, 0) < $num_accepted
    and len(coalesce(answered, [])) < $max_attempts
    and coalesce(refused, 0) = 0
order by list_id

-- name: count_prompts
select count(*) from prompts

-- name: prompts_since
-- Prompts that were stored after the first $rows. Prompts are never removed.
select prompt_id from prompts where rowid >= $rows

-- name: sampling_runs
-- Every run with a journal: whether it ended, how much of its journal is committed, and the rules of its ruleset, which
-- are NULL if the run recorded no version of a ruleset.
select
    run_id,
    ended_at is not null as ended,
    coalesce(committed_offset, 0) as committed_offset,
    rules
from runs
left join journals using (run_id)
left join rulesets on name = settings ->> 'ruleset' and version = (settings ->> 'ruleset_version')::integer
where kind in ('trace', 'train-dapo')
order by started_at, run_id

-- name: clear_committed_offset
delete from journals where run_id = $run_id

-- name: record_committed_offset
insert into journals values ($run_id, $committed_offset)

-- name: end_run
update runs set status = $status, ended_at = current_localtimestamp() where run_id = $run_id and ended_at is null

-- name: ranges_to_judge
-- The last key of each batch of stored completions of a dataset, oldest first, and the ranges of rows with its prompts,
-- its lists and their evidence.
with numbered as (
    select
        created_at,
        trace_id,
        prompt_id,
        list_id,
        row_number() over (order by created_at, trace_id) as place
    from traces
    where dataset = $dataset
        and completion is not null
        and created_at >= $after_time
        and (created_at, trace_id) > ($after_time, $after_id)
),
facts as (
    select list_id, min(rowid) as first_evidence, max(rowid) as last_evidence from evidence group by list_id
)
select
    arg_max(created_at, place),
    arg_max(trace_id, place),
    min(prompts.rowid),
    max(prompts.rowid),
    min(candidate_lists.rowid),
    max(candidate_lists.rowid),
    coalesce(min(first_evidence), 0),
    coalesce(max(last_evidence), 0)
from numbered
join prompts using (prompt_id)
join candidate_lists on candidate_lists.list_id = numbered.list_id
left join facts on facts.list_id = numbered.list_id
group by (place - 1) // $batch
order by max(place)

-- name: completions_to_judge
-- Stored completions of a dataset after one key and up to another, inclusive, with the parser's reading of them.
select trace_id, created_at, prompt_id, completion, finish_reason, reasoning, ranking, outcome is null as unjudged
from traces
where dataset = $dataset
    and completion is not null
    and created_at between $after_time and $until_time
    and (created_at > $after_time or trace_id > $after_id)
    and (created_at < $until_time or trace_id <= $until_id)
order by created_at, trace_id

-- name: verdicts_of_batch
-- The newest verdict of each rule on the given traces. The times limit the search.
select trace_id, rule, passed, reason
from verdicts_current
where created_at between $first_time and $last_time and trace_id in (select unnest($trace_ids))
