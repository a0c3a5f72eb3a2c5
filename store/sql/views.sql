-- Views and macros for users' queries. They are code, not data: the store replaces them whenever this text changes.
-- `labels` is labels.duckdb, which the store attaches under that name.

-- The fold of a user, 0 to 4. It depends only on the user's name, so it does not change when users are added. A model
-- that is fitted without a fold has not seen the users of that fold. store.records.FOLDS is the number of folds.
-- Without the cast, the 5 would turn this into a division of doubles.
create or replace macro user_fold(user_id) as cast(md5_number(user_id) % cast(5 as uhugeint) as tinyint);

-- The version of each ruleset in force: the newest, or the one that this connection pinned (statement pin_rulesets).
create or replace view rulesets_current as
select name, version, rules, description, created_at
from rulesets
where version = coalesce(getvariable('pinned_rulesets')[name], version)
qualify version = max(version) over (partition by name);

-- The rules of a ruleset, given as NAME (the version in force) or NAME@VERSION. An unknown ruleset is an error. The
-- first branch of the case is never a constant, so error() is not folded at binding.
create or replace macro ruleset_rules(reference) as (
    select case when count(*) = 0 then error('no ruleset is called ' || reference || ': from rulesets lists them')
        else any_value(rules) end
    from rulesets
    where name = split_part(reference, '@', 1)
        and version = coalesce(
            try_cast(nullif(split_part(reference, '@', 2), '') as integer),
            (select version from rulesets_current where name = split_part(reference, '@', 1))
        )
);

-- The newest verdict of each rule on each trace. created_at, which is the same for all verdicts of a trace, is among
-- the partition's columns, so that a filter by it reaches the scan.
create or replace view verdicts_current as
select trace_id, rule, rule_version, passed, reason, detail, created_at
from verdicts
qualify rule_version = max(rule_version) over (partition by created_at, trace_id, rule);

-- The current label of each annotator on each trace. In each queue the last event counts, and "undo" takes it back. Of
-- the labels in several queues, or outside of them, the newest judgement counts. A skip counts only if there is no
-- judgement.
create or replace view labels_current as
select event_id, trace_id, annotator, label, tags, note, seconds, queue_id, shown, created_at
from labels.standing_labels
qualify row_number() over (partition by trace_id, annotator order by label = 'skip', created_at desc, event_id desc) = 1;

-- The results of the rules by outcome. `first_failed_rule` is the first rule of the ruleset "strict" that failed, or
-- "not_judged" if none failed but a verdict is missing. `rulesets`: the rulesets in force that accept the outcome.
create or replace view judged_outcomes as
select
    outcome,
    passed_rules,
    failed_rules,
    reasons,
    coalesce(
        list_filter(strict.rules, lambda rule: list_contains(failed_rules, rule))[1],
        if(list_has_all(passed_rules, strict.rules), null, 'not_judged')
    ) as first_failed_rule,
    (select list(name order by name) from rulesets_current where list_has_all(passed_rules, rules)) as rulesets
from outcomes, (select rules from rulesets_current where name = 'strict') as strict;

-- Traces of teachers that pass every rule of a ruleset, given as NAME or NAME@VERSION. A trace does not pass if it has
-- no completion, or lacks a verdict of one of the rules. An unknown ruleset is an error.
create or replace macro accepted_traces(ruleset_name) as table
with chosen as (select ruleset_rules(ruleset_name) as rules)
select traces.*
from traces, chosen
where error is null
    and teacher <> 'student'
    and (len(rules) = 0 or outcome in (select outcome from outcomes, chosen where list_has_all(passed_rules, rules)));

-- One line per trace, with the columns that users filter by. `accepted` is under the ruleset "paper". `failed_rules`
-- may be any rules.
create or replace view trace_browser as
select
    trace_id,
    created_at,
    dataset,
    split,
    template,
    strategy,
    teacher,
    model,
    temperature,
    sample_index,
    user_id,
    target_item_id,
    target_rank,
    predicted_rank,
    copied,
    coalesce(list_contains(rulesets, 'paper'), false) as accepted,
    first_failed_rule,
    failed_rules,
    reasons,
    reasoning,
    ranking,
    error,
    finish_reason,
    prompt_tokens,
    completion_tokens,
    cost_usd,
    latency_ms,
    run_id,
    prompt_id,
    group_id,
    list_id
from traces
left join judged_outcomes using (outcome);

-- One line per rollout: the trace, the training step that sampled it, and its rewards.
create or replace view rollout_browser as
select step, reward, rewards, advantage, kept, trace_browser.*
from rollouts
join trace_browser using (trace_id);

-- The number of attempts at each prompt, and of accepted attempts under the ruleset "paper". A group contains all
-- attempts of one teacher, model and temperature at one prompt.
create or replace view pass_rates as
select
    group_id,
    any_value(prompt_id) as prompt_id,
    any_value(list_id) as list_id,
    any_value(dataset) as dataset,
    any_value(split) as split,
    any_value(template) as template,
    any_value(teacher) as teacher,
    any_value(model) as model,
    any_value(temperature) as temperature,
    count(*) as attempts,
    count(*) filter (accepted) as accepted,
    count(*) filter (accepted) / count(*) as pass_rate
from trace_browser
where error is null
group by group_id;

-- From prompts to accepted traces, by dataset, template and teacher. Each column is a subset of the one before it,
-- except for `labelled`. Rollouts of students are not included.
create or replace view acceptance_funnel as
select
    dataset,
    split,
    template,
    teacher,
    model,
    count(distinct prompt_id) as prompts,
    count(*) as attempts,
    count(*) filter (error is null) as answered,
    count(*) filter (ranking is not null) as parsed,
    count(*) filter (accepted) as accepted,
    count(distinct prompt_id) filter (accepted) as prompts_accepted,
    count(*) filter (trace_id in (select trace_id from labels_current)) as labelled,
    sum(prompt_tokens) as prompt_tokens,
    sum(completion_tokens) as completion_tokens,
    sum(cost_usd) as cost_usd
from trace_browser
where teacher <> 'student'
group by dataset, split, template, teacher, model
order by dataset, split, template, teacher, model;
