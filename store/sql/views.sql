-- Views and macros for people who query. They are code, not data: the store replaces them whenever this text changes.
-- `labels` is labels.duckdb, attached under that name by every connection that the store opens.

-- A policy is a named list of rules (curate/rules.py); `all` asks for nothing but a completion.
create or replace view policies as
select policy, rules
from (
    values
        ('all', []::varchar[]),
        ('paper', ['parsed', 'permutation', 'target_first']),
        ('strict', [
            'parsed', 'complete', 'known_sids', 'permutation', 'target_first', 'cites', 'grounded', 'no_leak', 'not_copied'
        ])
) as policy_rules(policy, rules);

-- The newest verdict of each rule on each trace.
create or replace view verdicts_current as
select trace_id, rule, rule_version, passed, reason, detail
from verdicts
qualify rule_version = max(rule_version) over (partition by trace_id, rule);

-- What each annotator thinks of each trace now: the last event wins, and "undo" takes the label back.
create or replace view labels_current as
select event_id, trace_id, annotator, label, tags, note, seconds, created_at
from (
    from labels.label_events
    qualify row_number() over (partition by trace_id, annotator order by created_at desc, event_id desc) = 1
)
where label <> 'undo';

-- Traces that pass every rule of a policy; one without a completion, or not yet judged by a rule, does not.
-- An unknown policy is an error. The first branch of the case is never a constant, so error() is not folded at binding.
create or replace macro accepted_traces(policy_name) as table
with chosen as (
    select case when count(*) = 0 then error('no policy is called ' || policy_name || ': select policy from policies lists them')
        else any_value(rules) end as rules
    from policies
    where policy = policy_name
)
select traces.*
from traces, chosen
where completion is not null
    and (
        len(rules) = 0
        or trace_id in (
            select trace_id
            from verdicts_current, chosen
            where passed and list_contains(rules, rule)
            group by trace_id
            having count(*) = any_value(len(rules))
        )
    );

-- One line per trace with what people filter by. `accepted` is by the policy "paper"; `failed_rules` are of all rules.
create or replace view trace_browser as
select
    traces.trace_id,
    traces.created_at,
    prompts.dataset,
    candidate_lists.split,
    prompts.template,
    prompts.strategy,
    traces.teacher,
    traces.model,
    traces.temperature,
    traces.sample_index,
    candidate_lists.user_id,
    candidate_lists.target_item_id,
    candidate_lists.target_rank,
    nullif(list_position(traces.ranking, candidate_lists.target_item_id), 0) as new_rank,
    traces.trace_id in (select trace_id from accepted_traces('paper')) as accepted,
    failures.failed_rules,
    failures.reasons,
    traces.reasoning,
    traces.ranking,
    traces.error,
    traces.finish_reason,
    traces.prompt_tokens,
    traces.completion_tokens,
    traces.cost_usd,
    traces.latency_ms,
    traces.run_id,
    traces.prompt_id,
    prompts.list_id
from traces
join prompts using (prompt_id)
join candidate_lists using (list_id)
left join (
    select trace_id, list(rule order by rule) as failed_rules, list(reason order by rule) as reasons
    from verdicts_current
    where not passed
    group by trace_id
) as failures using (trace_id);

-- How many attempts each prompt took and how many were accepted under the policy "paper".
create or replace view pass_rates as
select
    prompt_id,
    any_value(list_id) as list_id,
    any_value(dataset) as dataset,
    any_value(split) as split,
    any_value(template) as template,
    teacher,
    model,
    temperature,
    count(*) as attempts,
    count(*) filter (accepted) as accepted,
    count(*) filter (accepted) / count(*) as pass_rate
from trace_browser
where error is null
group by prompt_id, teacher, model, temperature;

-- From prompts to accepted traces, by data set, template and teacher. Each column is a subset of the one before it,
-- but for `labelled`.
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
group by dataset, split, template, teacher, model
order by dataset, split, template, teacher, model;
