-- Trainings.

-- name: resume_run
update runs set status = 'running', ended_at = null where run_id = $run_id

-- name: delete_run_metrics_after
-- A resumed training logs the steps after its last checkpoint again.
delete from run_metrics where run_id = $run_id and step > $step

-- name: delete_verdicts_of_rollouts_after
delete from verdicts
where trace_id in (select trace_id from rollouts where run_id = $run_id and step > $step)

-- name: delete_traces_of_rollouts_after
delete from traces
where trace_id in (select trace_id from rollouts where run_id = $run_id and step > $step)

-- name: delete_rollouts_after
-- A resumed training repeats the steps after its last checkpoint, and its student has not learnt from these rollouts.
delete from rollouts where run_id = $run_id and step > $step

-- name: unknown_lists
-- The number of lists of `batch` that are not in the store.
select count(*) from batch anti join candidate_lists using (list_id)

-- name: rollout_steps
-- The number of rollouts of a run by step.
select step, count(*) as rollouts from rollouts where run_id = $run_id group by step order by step

-- name: training_of_student
-- The newest DAPO training with this name that has rollouts.
select run_id, settings
from runs
where kind = 'train-dapo' and settings ->> 'name' = $name and run_id in (select run_id from rollouts)
order by started_at desc
limit 1

-- name: rollouts_to_judge
select trace_id, step, prompt_id, sample_index, completion, completion_tokens, reward, kept
from rollouts
join traces using (trace_id, run_id)
where run_id = $run_id
order by step, prompt_id, sample_index

-- name: training_runs
select
    runs.run_id,
    kind,
    settings ->> 'name' as name,
    settings ->> 'student' as student,
    settings ->> 'snapshot' as snapshot,
    dataset,
    status,
    max(step) as steps,
    arg_max(value, step) filter (metric = 'loss') as last_loss,
    arg_max(value, step) filter (metric = 'reward') as last_reward,
    cast(any_value(value) filter (metric = 'best_step') as integer) as best_step,
    started_at,
    ended_at
from runs
left join run_metrics using (run_id)
where kind like 'train-%'
group by runs.run_id, kind, settings, dataset, status, started_at, ended_at
order by started_at desc

-- name: curves_of
-- The best step is a single number, so it is not a curve.
select run_id, metric, step, value
from run_metrics
where list_contains($run_ids, run_id) and metric <> 'best_step'
order by run_id, metric, step
