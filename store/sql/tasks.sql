-- The data for rendering prompts and for judging completions.

-- name: task_lists
select list_id, history[-20:] as history, target_item_id, item_ids, scores
from candidate_lists
where rowid between $first and $last and list_id in (select unnest($list_ids))

-- name: task_evidence
select
    list_id, score, last_weight, links, shared_category, shared_category_items, same_brand_items, popularity,
    text_last, text_mean, text_max, copurchase_last, copurchase_mean, copurchase_max
from evidence
where rowid between $first and $last and list_id in (select unnest($list_ids))
order by list_id, rank

-- name: create_located_lists
-- The places of the lists of `batch`: their own rows, and the first and last rows of their evidence.
create or replace temp table located_lists as
with lists as (select list_id, rowid as place from candidate_lists semi join batch using (list_id)),
facts as (
    select list_id, min(rowid) as first_evidence, max(rowid) as last_evidence
    from evidence
    semi join batch using (list_id)
    group by list_id
)
from lists left join facts using (list_id)

-- name: located_lists
from located_lists

-- name: folds_of_lists
select list_id, fold from candidate_lists where dataset = $dataset and pre_ranker = $pre_ranker and fold is not null

-- name: task_items
select items.item_id, semantic_ids.text as sid, items.title, items.categories, items.brand
from items
join semantic_ids using (dataset, item_id)
where items.dataset = $dataset
    and semantic_ids.sid_version = $sid_version
    and items.item_id in (select unnest($item_ids))

-- name: prompts_by_id
select prompt_id, list_id, dataset, sid_version, strategy, template from prompts
where rowid between $first and $last and prompt_id in (select unnest($prompt_ids))
