-- What a training logged, step by step.
create table run_metrics (
    run_id varchar not null,
    step integer not null,
    metric varchar not null,
    value double not null
);
