-- name: items_of
select item_id, title, categories, brand, description from items where dataset = $dataset order by item_id

-- name: sid_version
select settings, items, distinct_ids, uniqueness, fit_for_training
from sid_versions
where dataset = $dataset and sid_version = $sid_version

-- name: sid_version_list
select dataset, sid_version, method, items, uniqueness, fit_for_training, created_at
from sid_versions
order by created_at desc, dataset, sid_version

-- name: sid_measures_of
select measure, level, value from sid_measures where dataset = $dataset and sid_version = $sid_version

-- name: codes_of
select item_id, codes from semantic_ids where dataset = $dataset and sid_version = $sid_version

-- name: co_interacted_pairs
-- Items that a user took one after the other, as often as that happened; training interactions only.
select item_id, next_item_id
from (
    select
        item_id,
        lead(item_id) over (partition by user_id order by position) as next_item_id,
        user_id,
        position
    from interactions
    where dataset = $dataset and split = 'train'
)
where next_item_id is not null and next_item_id <> item_id
order by user_id, position

-- name: accept_sid_version
update sid_versions set fit_for_training = true where dataset = $dataset and sid_version = $sid_version

-- name: data_sets_of_item
select dataset from semantic_ids where item_id = $item_id group by dataset order by dataset
