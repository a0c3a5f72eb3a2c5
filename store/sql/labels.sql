-- Labels of people. Statements that read traces run on the main file. The others run on labels.duckdb alone.

-- name: append_label_event
-- Events are ordered by time. A new event is always the latest, even if the clock was set back.
insert into label_events by name
select
    $event_id as event_id,
    $trace_id as trace_id,
    $annotator as annotator,
    $label as label,
    $tags as tags,
    $note as note,
    $seconds as seconds,
    $queue_id as queue_id,
    $shown as shown,
    greatest($now, max(created_at) + interval 1 microsecond) as created_at
from label_events

-- name: append_label_queue
-- Only for a queue that is new in the same transaction.
insert into label_queues by name from batch

-- name: append_label_queue_traces
insert into label_queue_traces by name from batch

-- name: choose_random
select trace_id, created_at
from traces
where error is null
-- and: conditions
order by md5_number_lower(concat_ws(chr(31), trace_id, $seed)), trace_id
limit $size

-- name: choose_newest
select trace_id, created_at
from traces
where error is null
-- and: conditions
order by created_at desc, trace_id
limit $size

-- name: choose_lowest_pass_rate
select trace_id, created_at
from traces
join (select group_id, pass_rate, attempts from pass_rates) using (group_id)
where error is null
-- and: conditions
order by pass_rate, attempts desc, md5_number_lower(concat_ws(chr(31), trace_id, $seed)), trace_id
limit $size

-- name: choose_disputed
-- The judges are the rulesets paper and strict, and every annotator. Traces come first if many judges are in the
-- minority, and last if all judges agree.
with votes as (
    select trace_id, count(*) filter (label = 'good') as good, count(*) filter (label = 'bad') as bad
    from labels_current
    group by trace_id
),
verdicts_of_rulesets as (
    select
        outcome,
        list_contains(rulesets, 'paper')::int + list_contains(rulesets, 'strict')::int as good
    from judged_outcomes
)
select trace_id, created_at
from (
    select traces.*, coalesce(votes.good, 0) + judges.good as good, coalesce(votes.bad, 0) + 2 - judges.good as bad
    from traces
    join verdicts_of_rulesets as judges using (outcome)
    left join votes using (trace_id)
) as traces
where error is null
-- and: conditions
order by least(good, bad) desc, md5_number_lower(concat_ws(chr(31), trace_id, $seed)), trace_id
limit $size

-- name: label_queue
select settings, traces from labels.label_queues where queue_id = $queue_id

-- name: label_queue_list
-- Each queue with the number of traces that have enough judgements, and the number that an annotator has finished.
with judged as (
    select
        queue_id,
        trace_id,
        count(*) filter (label <> 'skip') as judgements,
        bool_or(annotator = $annotator) as mine
    from labels.standing_labels
    group by queue_id, trace_id
)
select
    queues.queue_id,
    queues.name,
    queues.settings,
    queues.traces,
    queues.author,
    queues.created_at,
    count(*) filter (judgements >= (settings ->> 'overlap')::int)::int as finished,
    count(*) filter (mine)::int as mine
from labels.label_queues as queues
left join judged using (queue_id)
group by all
order by queues.created_at desc, queues.queue_id

-- name: look_at_queue
-- The progress of a queue for an annotator. `next` is the first trace that needs a judgement of this annotator; a trace
-- assigned to them comes before all others. `open` counts the traces they may still get, without regard to assignments.
with judged as (
    select
        trace_id,
        count(*) filter (label <> 'skip') as judgements,
        bool_or(annotator = $annotator) as mine
    from standing_labels
    where queue_id = $queue_id
    group by trace_id
),
seated as (
    select
        trace_id,
        count(*) filter (annotator <> $annotator and assigned_at > $assigned_since) as others,
        bool_or(annotator = $annotator) as mine
    from label_assignments
    where queue_id = $queue_id
    group by trace_id
),
places as (
    select
        place,
        trace_id,
        created_at,
        coalesce(judgements, 0) as judgements,
        coalesce(others, 0) as others,
        coalesce(judged.mine, false) as mine,
        coalesce(seated.mine, false) as my_assignment
    from label_queue_traces
    left join judged using (trace_id)
    left join seated using (trace_id)
    where queue_id = $queue_id
)
select
    count(*)::int as traces,
    count(*) filter (judgements >= $overlap)::int as finished,
    count(*) filter (mine)::int as mine,
    count(*) filter (not mine and judgements < $overlap)::int as open,
    arg_min(row(place, trace_id, created_at), if(my_assignment, 0, place))
        filter (not mine and judgements + others < $overlap) as next
from places

-- name: release_assignment
delete from label_assignments where queue_id = $queue_id and annotator = $annotator

-- name: claim_next
insert into label_assignments values ($queue_id, $trace_id, $annotator, $assigned_at)

-- name: last_label
-- The annotator's newest label in a queue, if it was not taken back.
select trace_id, label
from standing_labels
where queue_id = $queue_id and annotator = $annotator
order by created_at desc, event_id desc
limit 1

-- name: place_in_queue
select place, trace_id, created_at from label_queue_traces where queue_id = $queue_id and trace_id = $trace_id

-- name: has_assignment
select 1 from label_assignments where queue_id = $queue_id and trace_id = $trace_id and annotator = $annotator
