-- What a training by reinforcement sampled, and what it was rewarded with; each rollout is a trace of the training's run.
create table rollouts (
    trace_id varchar not null,
    run_id varchar not null,
    step integer not null,
    rewards json not null,
    reward double,
    advantage double not null,
    kept boolean not null
);
