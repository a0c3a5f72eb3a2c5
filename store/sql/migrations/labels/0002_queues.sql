-- Queues of traces to label, who looks at which of them now, what an annotator was shown, and queries worth keeping.
alter table label_events add column queue_id varchar;
alter table label_events add column shown json;

create table label_queues (
    queue_id varchar not null,
    name varchar not null,
    settings json not null,
    traces integer not null,
    author varchar not null,
    created_at timestamp not null
);

create table label_queue_traces (
    queue_id varchar not null,
    place integer not null,
    trace_id varchar not null,
    created_at timestamp not null
);

create table label_seats (
    queue_id varchar not null,
    trace_id varchar not null,
    annotator varchar not null,
    taken_at timestamp not null
);

create table saved_queries (
    name varchar not null,
    query varchar not null,
    author varchar not null,
    created_at timestamp not null
);

-- What each annotator's last word on a trace is, queue by queue, unless it is "undo".
create view standing_labels as
select *
from (
    from label_events
    qualify row_number() over (partition by queue_id, trace_id, annotator order by created_at desc, event_id desc) = 1
)
where label <> 'undo';
