-- Run in a scratch database by curate.datasets.ingest. Only `dataset` and `dataset_names` run on the store.

-- name: create_raw_items
create table raw_items (
    item_id varchar, title varchar, categories varchar[], brand varchar, description varchar, line bigint
)

-- name: create_raw_interactions
create table raw_interactions (
    user_id varchar, item_id varchar, position bigint, timestamp timestamp, rating float, line bigint
)

-- name: append_raw_items
insert into raw_items by name from batch

-- name: append_raw_interactions
insert into raw_interactions by name from batch

-- name: append_items_of_log
-- Item columns of the interactions. `merge_items_of_log` makes one row of each item.
insert into raw_items by name select item_id, title, categories, brand, description, line from batch

-- name: merge_items_of_log
-- One row for each item, with the first known value of each column.
create or replace table raw_items as
select
    item_id,
    arg_min(title, line) filter (title is not null) as title,
    coalesce(arg_min(categories, line) filter (len(categories) > 0), []) as categories,
    arg_min(brand, line) filter (brand is not null) as brand,
    arg_min(description, line) filter (description is not null) as description,
    min(line) as line
from raw_items
group by item_id

-- name: drop_repeated_items
-- Drop repetitions of an item that are equal in all columns.
delete from raw_items
where line in (
    select line
    from raw_items
    qualify row_number() over (partition by item_id, title, categories, brand, description order by line) > 1
)

-- name: first_duplicate_item
-- The first line that repeats an item, and the line of the item's first occurrence.
select item_id, line, first_line
from (select item_id, line, min(line) over (partition by item_id) as first_line from raw_items)
where line > first_line
order by line
limit 1

-- name: first_unknown_item
select item_id, min(line) as line, count(*) over () as unknown_items
from raw_interactions anti join raw_items using (item_id)
group by item_id
order by line
limit 1

-- name: item_alike
-- An item whose identifier differs from this one only by leading zeros or case.
select item_id from raw_items where lower(ltrim(item_id, '0')) = lower(ltrim($item_id, '0')) limit 1

-- name: count_ratings
select count(rating) as ratings from raw_interactions

-- name: drop_low_ratings
-- Interactions without a rating are dropped too.
delete from raw_interactions where coalesce(rating < $min_rating, true)

-- name: drop_unknown_items
delete from raw_interactions where item_id not in (select item_id from raw_items)

-- name: drop_repeated_interactions
-- Drop repetitions of a purchase that have the same user, item, position and time.
delete from raw_interactions
where line in (
    select line
    from raw_interactions
    qualify row_number() over (partition by user_id, item_id, position, timestamp order by line) > 1
)

-- name: drop_rare_users
delete from raw_interactions
where user_id in (select user_id from raw_interactions group by user_id having count(*) < $k_core)

-- name: drop_rare_items
delete from raw_interactions
where item_id in (select item_id from raw_interactions group by item_id having count(*) < $k_core)

-- name: drop_items_without_interactions
delete from raw_items where item_id not in (select item_id from raw_interactions)

-- name: create_ordered_interactions
-- Each user's interactions by time. Interactions at the same time are shuffled by the seed, so that the file's order
-- does not matter.
create table ordered_interactions as
select
    user_id,
    item_id,
    timestamp,
    rating,
    cast(row_number() over (partition by user_id order by timestamp, position, shuffle, line) - 1 as integer) as position,
    cast(count(*) over (partition by user_id) as integer) as length
from (select *, md5(concat_ws(chr(31), $seed, user_id, item_id)) as shuffle from raw_interactions)

-- name: split_last_out
-- A user's last interaction is test, the one before it is valid, and the others are train. With two or fewer, all are
-- train.
create table split_interactions as
select
    $dataset as dataset, user_id, item_id, position, timestamp, rating,
    case
        when length < 3 then 'train'
        when position = length - 1 then 'test'
        when position = length - 2 then 'valid'
        else 'train'
    end as split
from ordered_interactions

-- name: split_by_time
-- The latest `test_share` of all interactions is test, and the `valid_share` before it is valid.
create table split_interactions as
select
    $dataset as dataset, user_id, item_id, position, timestamp, rating,
    case when timestamp >= test_from then 'test' when timestamp >= valid_from then 'valid' else 'train' end as split
from ordered_interactions, (
    select
        quantile_disc(timestamp, 1 - $test_share) as test_from,
        quantile_disc(timestamp, 1 - $test_share - $valid_share) as valid_from
    from ordered_interactions
)

-- name: first_interaction_without_time
select line from raw_interactions where timestamp is null order by line limit 1

-- name: time_span
-- The first and last time, the number of interactions in doubtful years, and how many have the same time and user as
-- another.
select
    min(timestamp) as first_time,
    max(timestamp) as last_time,
    coalesce(sum(interactions) filter (interactions > 1), 0) :: bigint as shuffled_ties,
    coalesce(sum(interactions) filter (timestamp < timestamp '1990-01-01'), 0) :: bigint as before_1990,
    coalesce(sum(interactions) filter (timestamp > $now), 0) :: bigint as after_today
from (
    select user_id, timestamp, position, count(*) as interactions
    from raw_interactions
    group by user_id, timestamp, position
)

-- name: split_counts
select
    (select count(*) from raw_items) as items,
    count(distinct user_id) as users,
    count(*) as interactions,
    count(*) filter (split = 'train') as train,
    count(*) filter (split = 'valid') as valid,
    count(*) filter (split = 'test') as test
from split_interactions

-- name: fingerprint
-- A hash that depends neither on the order of rows nor on DuckDB's version.
select md5(concat_ws(
    '-',
    (
        select bit_xor(md5_number(concat_ws(
            chr(31), item_id, coalesce(title, ''), array_to_string(categories, chr(30)), coalesce(brand, ''),
            coalesce(description, '')
        )))
        from raw_items
    ),
    (
        select bit_xor(md5_number(concat_ws(
            chr(31), user_id, item_id, position, coalesce(epoch_us(timestamp), -1), coalesce(rating, -1), split
        )))
        from split_interactions
    )
))

-- name: split_items_rows
select $dataset as dataset, item_id, title, categories, brand, description from raw_items order by item_id

-- name: split_interactions_rows
select dataset, user_id, item_id, position, timestamp, rating, split from split_interactions order by user_id, position

-- name: dataset
select dataset, source, settings, fingerprint from datasets where dataset = $dataset

-- name: dataset_names
select dataset from datasets order by dataset
