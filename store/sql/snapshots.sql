-- name: select_traces
-- The traces of a selection, for the statements below. `good` is false if an annotator labelled the trace bad.
create or replace temp table selected_traces as
select
    trace_id, created_at, group_id, prompt_id, list_id, user_id, split, template, teacher, model, completion_tokens,
    outcome,
    trace_id not in (select trace_id from labels_current where label = 'bad') as good
from traces
where error is null
    and (len($rules) = 0 or outcome in (select outcome from outcomes where list_has_all(passed_rules, $rules)))
    and list_contains($splits, split)
    and (split <> 'train' or len($held_out_folds) = 0 or list_contains($held_out_folds, user_fold(user_id)))
-- and: conditions

-- name: snapshot_rule_versions
-- The newest version of each rule that judged selected traces. If a rule has a single version, the traces need not be
-- read, because they passed the rule.
with versions as (
    select rule, max(rule_version) as rule_version, count(distinct rule_version) as several
    from verdicts
    where list_contains($rules, rule)
    group by rule
)
select rule, rule_version from versions where several = 1
union all
select rule, max(rule_version) as rule_version
from verdicts
semi join (from selected_traces where good) as chosen using (created_at, trace_id)
where rule in (select rule from versions where several > 1)
group by rule

-- name: snapshot_trace_totals
select
    count(distinct prompt_id) filter (good) as prompts,
    count(distinct user_id) filter (good) as users,
    count(*) filter (not good) as labelled_bad,
    avg(completion_tokens) filter (good) as mean_tokens
from selected_traces

-- name: snapshot_trace_groups
select
    split,
    template,
    teacher,
    model,
    count(*) filter (good) as rows,
    count(*) filter (not good) as labelled_bad,
    avg(completion_tokens) filter (good) as mean_tokens
from selected_traces
group by split, template, teacher, model
order by split, template, teacher, model

-- name: snapshot_trace_targets
-- The interactions that the selected traces teach.
select distinct user_id, position
from candidate_lists
where list_id in (select list_id from selected_traces where good)

-- name: snapshot_suspects
-- Selected traces that did not pass the rule no_leak, for example because they cannot be parsed.
select trace_id, created_at
from selected_traces
where good
    and (outcome is null or outcome not in (select outcome from outcomes where list_contains(passed_rules, 'no_leak')))

-- name: create_wordings
-- The wordings of the prompts of the selected traces, numbered.
create or replace temp table wordings as
select row_number() over (order by sid_version, template, template_sha256, knowledge_priming)::integer as wording, *
from (
    select distinct sid_version, template, template_sha256, knowledge_priming
    from prompts
    where prompt_id in (select prompt_id from selected_traces where good)
)

-- name: snapshot_wordings
select wording, sid_version, template, template_sha256, knowledge_priming from wordings order by wording

-- name: snapshot_chosen
-- The fixed list of traces that rows are made from: the first selected traces by id, or all. Pass rates are the current
-- ones.
with chosen as (
    select trace_id, created_at, group_id, prompt_id
    from selected_traces
    where good
        and ($limit is null or trace_id in (
            select trace_id from selected_traces where good order by trace_id limit coalesce($limit, 0)
        ))
)
select trace_id, created_at, wording, pass_rate
from chosen
join (
    select prompt_id, wording
    from prompts
    join wordings using (sid_version, template, template_sha256, knowledge_priming)
) as worded using (prompt_id)
join (from pass_rates where group_id in (select group_id from chosen)) as rates using (group_id)

-- name: snapshot_texts
-- The texts of the traces in `part`, which were made between the two times.
select list_id, split, strategy, teacher, model, temperature, completion, reasoning, ranking, part.*
from traces
join part using (created_at, trace_id)
where traces.created_at between $first_time and $last_time

-- name: create_part
create or replace temp table part as from batch

-- name: snapshot_lists
-- The lists that contain their target, with the pass rate of the teacher, model and temperature with the most attempts.
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
        and case when $teacher is null then pass_rates.teacher <> 'student' else pass_rates.teacher = $teacher end
    group by pass_rates.list_id
)
select list_id, split, user_id, position, target_rank, pass_rate, pass_rate_model, attempts
from candidate_lists
left join tried using (list_id)
where dataset = $dataset
    and pre_ranker = $pre_ranker
    and list_contains($splits, split)
    and (split <> 'train' or len($held_out_folds) = 0 or list_contains($held_out_folds, fold))
    and target_rank is not null
order by list_id

-- name: catalogue_with_sids
select items.item_id, semantic_ids.text as sid, items.title, items.categories, items.brand
from items
join semantic_ids using (dataset, item_id)
where items.dataset = $dataset and semantic_ids.sid_version = $sid_version
order by items.item_id

-- name: snapshot_sequences
-- Each user's items up to the interactions of a split, inclusive. Users with one item have no sequence. Users of
-- held-out folds are left out.
select
    user_id,
    chosen.split,
    list(item_id order by position) as item_ids,
    max(position) filter (interactions.split = chosen.split) as last_position
from interactions
join (select unnest($splits) as split) as chosen
    on chosen.split = interactions.split or (chosen.split <> 'train' and interactions.split = 'train')
where dataset = $dataset and not list_contains($held_out_folds, user_fold(user_id))
group by user_id, chosen.split
having count(*) > 1 and count(*) filter (interactions.split = chosen.split) > 0
order by chosen.split, user_id

-- name: create_taught
-- The interactions that a selection teaches.
create or replace temp table taught as select user_id, position from batch

-- name: test_targets
-- Taught interactions that are in the split test.
select user_id, position
from interactions
semi join taught using (user_id, position)
where dataset = $dataset and split = 'test'
order by all
limit 5

-- name: template_text
select text from templates where template = $template and sha256 = $sha256

-- name: label_watermark
-- The state of the labels on a dataset: the number of events and the time of the newest.
select count(*) as events, coalesce(max(label_events.created_at)::varchar, '') as newest
from labels.label_events as label_events
join traces using (trace_id)
where dataset = $dataset

-- name: snapshot_list
-- By name, then in the order in which they were published, because a clock may have been set back.
select name, version, kind, rows, created_at, path from snapshots order by name, rowid

-- name: snapshots_newest_first
select name, version, kind, rows, created_at, path from snapshots order by rowid desc

-- name: snapshot_versions
select version, path from snapshots where name = $name order by rowid desc

-- name: snapshot_ancestors
-- A version and its ancestors, by parent.
with recursive ancestors as (
    select 0 as age, version, rows, created_at, manifest ->> 'parent' as parent
    from snapshots
    where name = $name and version = $version
    union all
    select age + 1, snapshots.version, snapshots.rows, snapshots.created_at, snapshots.manifest ->> 'parent'
    from ancestors
    join snapshots on snapshots.name = $name and snapshots.version = ancestors.parent
)
select version, rows, created_at, parent from ancestors order by age

-- name: snapshot_runs
-- The runs that made the given traces.
select run_id, any_value(teacher) as teacher, any_value(model) as model, any_value(template) as template, count(*) as rows
from traces
where trace_id in (select unnest($trace_ids::varchar[]))
group by run_id
order by min(created_at) desc

-- name: snapshot_trainings
-- The trainings that used a snapshot, given as NAME@VERSION.
select run_id, kind, settings ->> 'name' as name, settings ->> 'student' as student, status, started_at
from runs
where kind like 'train-%' and settings ->> 'snapshot' = $reference
order by started_at desc
