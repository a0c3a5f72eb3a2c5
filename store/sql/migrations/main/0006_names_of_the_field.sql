-- The store speaks the field's words: oracle, predicted rank, committed offset, and names of rules, rewards and measures
-- that say what they mean. What an older gr2 wrote is renamed, never recomputed.
drop view if exists policies;

alter table optimal_rankings rename to oracle_rankings;
alter table traces rename column new_rank to predicted_rank;
alter table journals rename column absorbed_bytes to committed_offset;

update evaluations set ranker = 'oracle' where ranker = 'bayes_optimal';
update rankings set ranker = 'oracle' where ranker = 'bayes_optimal';
update evaluation_differences set ranker = 'oracle' where ranker = 'bayes_optimal';
update evaluation_differences set other = 'oracle' where other = 'bayes_optimal';
update evaluation_slices set ranker = 'oracle' where ranker = 'bayes_optimal';
update evaluations set metric = 'top1_consistency' where metric = 'position_bias_same_first';
update sid_measures set measure = 'neighbour_recall' where measure = 'neighbours_kept';
update sid_measures set measure = 'reconstruction_error' where measure = 'unexplained';

update verdicts set rule = 'not_truncated' where rule = 'complete';

-- An outcome is named by a hash of its verdicts in the order of their rules, so a renamed rule gives it a new name.
create temp table renamed_outcomes as
with verdict_of_outcome as (
    select outcome, unnest(passed_rules) as rule, true as passed, null as reason
    from outcomes
    union all
    select outcome, unnest(failed_rules), false, nullif(unnest(reasons), '')
    from outcomes
),
named as (
    select * replace (if(rule = 'complete', 'not_truncated', rule) as rule)
    from verdict_of_outcome
    where outcome in (select outcome from verdict_of_outcome where rule = 'complete')
)
select
    outcome as former,
    md5_number_lower(string_agg(concat_ws(chr(31), rule, passed, reason), chr(30) order by rule)) as outcome,
    coalesce(list(rule order by rule) filter (passed), []) as passed_rules,
    coalesce(list(rule order by rule) filter (not passed), []) as failed_rules,
    coalesce(list(coalesce(reason, '') order by rule) filter (not passed), []) as reasons
from named
group by outcome;

update traces set outcome = renamed_outcomes.outcome from renamed_outcomes where traces.outcome = renamed_outcomes.former;
delete from outcomes where outcome in (select former from renamed_outcomes);
insert into outcomes select outcome, passed_rules, failed_rules, reasons from renamed_outcomes;
drop table renamed_outcomes;

-- Settings of trainings are read again by --resume.
update runs
set settings = replace(replace(replace(settings::varchar,
        '"order_weight":', '"answer_weight":'),
        '"accumulation":', '"gradient_accumulation_steps":'),
        '"alpha":', '"format_weight":')::json
where kind in ('train-sft', 'train-dapo');
update runs
set settings = replace(replace(replace(replace(replace(replace(settings::varchar,
        '"group":', '"num_generations":'),
        '"prompts":', '"prompts_per_batch":'),
        '"updates":', '"num_iterations":'),
        '"reward":"paper"', '"reward":"conditional"'),
        '"reward":"plain"', '"reward":"unconditional"'),
        '"reward":"gated"', '"reward":"format_gated"')::json
where kind = 'train-dapo';
update runs
set settings = replace(replace(settings::varchar,
        '"policy":', '"ruleset":'),
        '"accept":', '"num_accepted":')::json
where kind = 'trace';
