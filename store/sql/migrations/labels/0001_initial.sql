create table label_events (
    event_id varchar not null,
    trace_id varchar not null,
    annotator varchar not null,
    label varchar not null,
    tags varchar[] not null,
    note varchar,
    seconds double,
    created_at timestamp not null
);
