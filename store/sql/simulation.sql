-- name: lists_with_target
-- Lists that contain their target, with the whole history, because a simulator's probabilities depend on all of it.
select list_id, split, target_item_id, item_ids,
    (
        select list(item_id order by position)
        from interactions
        where interactions.dataset = candidate_lists.dataset
            and interactions.user_id = candidate_lists.user_id
            and interactions.position < candidate_lists.position
    ) as history
from candidate_lists
where dataset = $dataset and pre_ranker = $pre_ranker and target_rank is not null
order by list_id
