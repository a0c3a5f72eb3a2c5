-- Trainings.

-- name: resume_run
update runs set status = 'running', ended_at = null where run_id = $run_id

-- name: delete_run_metrics_after
-- What a killed training logged after its last checkpoint is logged again.
delete from run_metrics where run_id = $run_id and step > $step

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
    started_at,
    ended_at
from runs
left join run_metrics using (run_id)
where kind like 'train-%'
group by runs.run_id, kind, settings, dataset, status, started_at, ended_at
order by started_at desc

-- name: curves_of
select run_id, metric, step, value
from run_metrics
where list_contains($run_ids, run_id)
order by run_id, metric, step
