-- name: items_of
select item_id, title, categories, brand, description from items where dataset = $dataset order by item_id

-- name: sid_version
select items, distinct_ids, uniqueness from sid_versions where dataset = $dataset and sid_version = $sid_version
