-- Targets and histories for the ranking of all items.

-- name: next_item_targets
-- Interactions of a split with earlier ones, each with all earlier items of its user, oldest first. They are chosen by
-- a hash, so that a limit takes a random sample.
with targets as (
    select user_id, position, item_id as target_item_id
    from interactions
    where dataset = $dataset and split = $split and position > 0
    order by md5(concat_ws(chr(31), user_id, position))
    limit $limit
)
select targets.user_id, targets.position, target_item_id, list(earlier.item_id order by earlier.position) as history
from targets
join interactions as earlier
    on earlier.dataset = $dataset and earlier.user_id = targets.user_id and earlier.position < targets.position
group by targets.user_id, targets.position, target_item_id
order by targets.user_id, targets.position
