-- Traces say what they answer and how they were judged, so that browsing millions of them joins nothing; verdicts say
-- when their trace was made, so that those of one trace are found where they lie.
create table outcomes (
    outcome ubigint not null,
    passed_rules varchar[] not null,
    failed_rules varchar[] not null,
    reasons varchar[] not null
);

create temp table judged as
select
    trace_id,
    md5_number_lower(string_agg(concat_ws(chr(31), rule, passed, reason), chr(30) order by rule)) as outcome,
    list(rule order by rule) filter (passed) as passed_rules,
    list(rule order by rule) filter (not passed) as failed_rules,
    list(coalesce(reason, '') order by rule) filter (not passed) as reasons
from (
    from verdicts
    qualify rule_version = max(rule_version) over (partition by trace_id, rule)
)
group by trace_id;

insert into outcomes
select outcome, any_value(coalesce(passed_rules, [])), any_value(coalesce(failed_rules, [])), any_value(coalesce(reasons, []))
from judged
group by outcome;

alter table traces rename to earlier_traces;
create table traces (
    trace_id varchar not null,
    prompt_id varchar not null,
    run_id varchar not null,
    teacher varchar not null,
    model varchar not null,
    temperature double not null,
    max_tokens integer not null,
    sample_index integer not null,
    completion varchar,
    reasoning varchar,
    ranking varchar[],
    finish_reason varchar,
    prompt_tokens integer,
    completion_tokens integer,
    cost_usd double,
    latency_ms double,
    error varchar,
    created_at timestamp not null,
    group_id ubigint not null,
    list_id varchar not null,
    dataset varchar not null,
    split varchar not null,
    user_id varchar not null,
    template varchar not null,
    strategy varchar not null,
    target_item_id varchar not null,
    target_rank integer,
    new_rank integer,
    copied boolean,
    outcome ubigint
);
insert into traces by name
select
    earlier_traces.*,
    md5_number_lower(concat_ws(chr(31), prompt_id, teacher, model, temperature)) as group_id,
    prompts.list_id,
    prompts.dataset,
    candidate_lists.split,
    candidate_lists.user_id,
    prompts.template,
    prompts.strategy,
    candidate_lists.target_item_id,
    candidate_lists.target_rank,
    nullif(list_position(ranking, candidate_lists.target_item_id), 0) as new_rank,
    ranking = candidate_lists.item_ids as copied,
    judged.outcome
from earlier_traces
-- Outer joins: a trace without its prompt or list then breaks a constraint, and nothing is lost.
left join prompts using (prompt_id)
left join candidate_lists using (list_id)
left join judged using (trace_id)
order by created_at, trace_id;

alter table verdicts rename to earlier_verdicts;
create table verdicts (
    trace_id varchar not null,
    rule varchar not null,
    rule_version integer not null,
    passed boolean not null,
    reason varchar,
    detail varchar,
    created_at timestamp not null
);
insert into verdicts by name
select earlier_verdicts.*, created_at
from earlier_verdicts
join earlier_traces using (trace_id)
order by created_at, trace_id, rule;

drop table judged;
drop table earlier_verdicts;
drop table earlier_traces;
