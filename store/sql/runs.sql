-- Trainings.

-- name: training_run
select run_id, kind, dataset, settings, status from runs where run_id = $run_id

-- name: resume_run
update runs set status = 'running', ended_at = null where run_id = $run_id

-- name: delete_run_metrics_after
-- What a killed training logged after its last checkpoint is logged again.
delete from run_metrics where run_id = $run_id and step > $step

-- name: training_runs
select
    runs.run_id,
    kind,
    dataset,
    status,
    started_at,
    ended_at,
    max(step) as steps,
    arg_max(value, step) filter (metric = 'loss') as last_loss,
    arg_max(value, step) filter (metric = 'reward') as last_reward,
    any_value(settings) as settings
from runs
left join run_metrics using (run_id)
where kind like 'train-%'
group by all
order by started_at desc

-- name: curves_of
select step, metric, value from run_metrics where run_id = $run_id order by metric, step
