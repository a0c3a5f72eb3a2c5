-- name: items_of
select item_id, title, categories, brand, description from items where dataset = $dataset order by item_id

-- name: sid_version
select settings, items, distinct_ids, uniqueness, fit_for_training
from sid_versions
where dataset = $dataset and sid_version = $sid_version

-- name: sid_version_list
select dataset, sid_version, method, items, uniqueness, fit_for_training, created_at
from sid_versions
order by rowid desc

-- name: sid_measures_of
select measure, level, value from sid_measures where dataset = $dataset and sid_version = $sid_version

-- name: codes_of
select item_id, codes from semantic_ids where dataset = $dataset and sid_version = $sid_version

-- name: co_interacted_pairs
-- Pairs of different items that a user bought directly one after the other, one row per occurrence. Only train
-- interactions are used, and none of users in the held-out folds.
select item_id, next_item_id
from (
    select
        item_id,
        lead(item_id) over (partition by user_id order by position) as next_item_id,
        user_id,
        position
    from interactions
    where dataset = $dataset and split = 'train' and not list_contains($held_out_folds, user_fold(user_id))
)
where next_item_id is not null and next_item_id <> item_id
order by user_id, position

-- name: accept_sid_version
update sid_versions set fit_for_training = true where dataset = $dataset and sid_version = $sid_version

-- name: data_sets_of_item
select dataset from semantic_ids where item_id = $item_id group by dataset order by dataset

-- name: prefix_nodes
-- Every prefix of a version, with the number of its items, and their most common category with its share.
with paths as (
    select codes, array_to_string(categories, ' > ') as category
    from semantic_ids
    join items using (dataset, item_id)
    where semantic_ids.dataset = $dataset and sid_version = $sid_version
),
counted as (
    select level, codes[1:level] as prefix, category, count(*) as items
    from paths, (select unnest(range(1, $levels + 1)) as level)
    group by all
)
select
    level::integer as level,
    prefix,
    sum(items)::bigint as items,
    arg_max(category, (items, category)) as category,
    max(items) / sum(items) as category_share
from counted
group by level, prefix
order by level, prefix

-- name: largest_prefixes
-- Prefixes with the most items, and some of these items.
select
    codes[1:$levels] as prefix,
    count(*) as items,
    count(distinct text) as distinct_ids,
    (list(coalesce(title, item_id) order by item_id))[1:5] as such_as
from semantic_ids
join items using (dataset, item_id)
where semantic_ids.dataset = $dataset and sid_version = $sid_version
group by prefix
having count(*) > 1
order by items desc, prefix
limit $limit

-- name: code_counts
-- The number of items by level and code.
select level::integer as level, codes[level] as code, count(*) as items
from semantic_ids, (select unnest(range(1, $levels + 1)) as level)
where dataset = $dataset and sid_version = $sid_version
group by all
order by level, items desc, code

-- name: find_items_by_text
select item_id, title
from semantic_ids
join items using (dataset, item_id)
where semantic_ids.dataset = $dataset
    and sid_version = $sid_version
    and (item_id = $text or contains(lower(title), lower($text)))
order by item_id <> $text, item_id
limit $limit
