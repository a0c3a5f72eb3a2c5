-- Trainings.

-- name: resume_run
update runs set status = 'running', ended_at = null where run_id = $run_id

-- name: delete_run_metrics_after
-- What a killed training logged after its last checkpoint is logged again.
delete from run_metrics where run_id = $run_id and step > $step

-- name: delete_verdicts_of_rollouts_after
delete from verdicts
where trace_id in (select trace_id from rollouts where run_id = $run_id and step > $step)

-- name: delete_traces_of_rollouts_after
delete from traces
where trace_id in (select trace_id from rollouts where run_id = $run_id and step > $step)

-- name: delete_rollouts_after
-- Steps after the last checkpoint of a killed training are done again, and the student knows nothing of these.
delete from rollouts where run_id = $run_id and step > $step

-- name: unknown_lists
-- Those of `batch` that the store has not.
select count(*) from batch anti join candidate_lists using (list_id)

-- name: rollout_steps
-- How many rollouts a run has by step.
select step, count(*) as rollouts from rollouts where run_id = $run_id group by step order by step

-- name: training_of_student
-- The newest training by reinforcement of that name, of which there are rollouts.
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
-- The best step is one number and no curve.
select run_id, metric, step, value
from run_metrics
where list_contains($run_ids, run_id) and metric <> 'best_step'
order by run_id, metric, step
