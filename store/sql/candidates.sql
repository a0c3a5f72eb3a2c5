-- The pre-ranker, run in a scratch database by curate.candidates. Items and users are small integers there.
--
-- A source is a set of interactions in which co-occurrence is counted: for train lists, the train interactions of all
-- users outside the list's fold; for valid lists, all of train; for test lists, train and valid.

-- name: interactions_of
select user_id, item_id, position, split, user_fold(user_id) as fold from interactions where dataset = $dataset

-- name: catalogue_of
select item_id, title, brand, categories, description from items where dataset = $dataset

-- name: create_catalogue
-- p1 to p8 are the numbers of the prefixes of the category path. Two items share as many of these numbers as they share
-- leading categories. An intersection of lists would be seven times as slow. Levels below the eighth are ignored.
create table catalogue as
with prefixes as (
    select item_id, depth, dense_rank() over (order by categories[:depth]) as prefix
    from (select item_id, categories, unnest(range(1, len(categories) + 1)) as depth from batch)
),
paths as (
    select item_id, list(cast(prefix as integer) order by depth) as path from prefixes group by item_id
)
select
    cast(row_number() over (order by item_id) - 1 as integer) as item, item_id, title, brand, categories, description,
    path[1] as p1, path[2] as p2, path[3] as p3, path[4] as p4,
    path[5] as p5, path[6] as p6, path[7] as p7, path[8] as p8
from batch
left join paths using (item_id)

-- name: create_sequences
create table sequences as
select
    cast(dense_rank() over (order by user_id) - 1 as integer) as user,
    user_id,
    catalogue.item,
    position,
    split,
    fold
from batch
join catalogue using (item_id)
order by user, position

-- name: create_lists
-- One list for each interaction with earlier ones. The earlier interactions are the history, and this one is the
-- target.
create table lists as
select
    cast(row_number() over (order by user, position) - 1 as integer) as list,
    user, user_id, position, item as target, split,
    case when split = 'train' then fold end as fold
from sequences
where position > 0

-- name: count_lists
select count(*) from lists where split = $split and ($fold is null or fold = $fold)

-- name: create_popularity
-- Buckets 1 to 5 are fifths of the items that were bought at all, from the least to the most often bought.
create or replace table popularity as
select item, cast(count(*) as integer) as purchases, ntile(5) over (order by count(*), item) as bucket
from sequences
where list_contains($splits, split) and ($without_fold is null or fold <> $without_fold)
group by item

-- name: create_pairs
-- For each ordered pair (left, right): how often right came after and before left within the window, and the weight of
-- going from left to right. A purchase before left counts `backward` times one after it, and both fade with the
-- distance. The sums are decimals, because a sum of doubles depends on the order of threads.
create or replace table pairs as
with bought_after as (
    select earlier.item as left_item, later.item as right_item, later.position - earlier.position as distance
    from sequences as earlier
    join sequences as later
        on later.user = earlier.user
        and later.position between earlier.position + 1 and earlier.position + $window
    where list_contains($splits, earlier.split)
        and list_contains($splits, later.split)
        and earlier.item <> later.item
        and ($without_fold is null or earlier.fold <> $without_fold)
),
counted as (
    select left_item, right_item, cast(count(*) as integer) as times_after, cast(0 as integer) as times_before,
        sum(cast($decay ** (distance - 1) as decimal(18, 9))) as raw
    from bought_after
    group by left_item, right_item
    union all
    select right_item, left_item, 0, cast(count(*) as integer), $backward * sum(cast($decay ** (distance - 1) as decimal(18, 9)))
    from bought_after
    group by left_item, right_item
)
select
    counted.left_item,
    counted.right_item,
    cast(sum(counted.times_after) as integer) as times_after,
    cast(sum(counted.times_before) as integer) as times_before,
    cast(
        sum(counted.raw) / (any_value(l.purchases) ** $left_power * any_value(r.purchases) ** $right_power) as float
    ) as weight
from counted
join popularity as l on l.item = counted.left_item
join popularity as r on r.item = counted.right_item
group by counted.left_item, counted.right_item

-- name: create_neighbours
-- The pairs used for scores: the strongest of each left item. The others would change R@10 by less than 0.0002 and
-- double the time.
create or replace table neighbours as
select left_item, right_item, weight
from pairs
qualify row_number() over (partition by left_item order by weight desc, right_item) <= $neighbours

-- name: create_batch
-- A share of the lists of one source. `create_recent` adds the last items of their histories, where `age` 0 is the
-- newest.
create or replace table batch_lists as
select * from lists where split = $split and ($fold is null or fold = $fold) and list % $batches = $batch

-- name: create_recent
create or replace table recent as
select batch_lists.list, sequences.item, batch_lists.position - 1 - sequences.position as age
from batch_lists
join sequences
    on sequences.user = batch_lists.user
    and sequences.position < batch_lists.position
    and sequences.position >= batch_lists.position - $history

-- name: create_ranked
-- The best candidates of each list, without items of its history. Votes are whole numbers (a weight of a millionth is
-- about 64), so that their sum does not depend on the order of threads. Equal sums are ordered by the item's number.
-- Best-selling items get votes under 64, so that a list with too few co-purchases is filled up with items of score 0.
create or replace table ranked as
with votes as (
    select recent.list, neighbours.right_item as item,
        64 * round($recency ** recent.age * neighbours.weight * 1048576) as vote
    from recent
    join neighbours on neighbours.left_item = recent.item
    union all
    select list, item, cast($candidates + $history - rank + 1 as double)
    from batch_lists, (
        select item, row_number() over (order by purchases desc, item) as rank
        from popularity
        order by rank
        limit $candidates + $history
    )
),
scored as (
    select list, item, cast(sum(vote) as bigint) * 16777216 + (16777215 - item) as votes_then_item
    from votes
    group by list, item
),
seen as (
    select batch_lists.list, sequences.item
    from batch_lists
    join sequences on sequences.user = batch_lists.user and sequences.position < batch_lists.position
),
best as (
    select list, arg_max(item, votes_then_item, $candidates) as items, max(votes_then_item, $candidates) as sums
    from scored
    anti join seen using (list, item)
    group by list
)
select
    list,
    unnest(items) as item,
    cast((unnest(sums) >> 30) / 1048576.0 as float) as score,
    cast(unnest(range(1, len(items) + 1)) as integer) as rank
from best

-- name: create_imported_ranked
-- The imported candidates, best first. Evidence compares scores by their ratio. If any score is 0 or less, as logits
-- and log-probabilities are, each score becomes its odds against the best of its list.
create or replace table ranked as
select
    list, item,
    cast(
        if((select min(score) from imported) > 0, score, exp(score - max(score) over (partition by list))) as float
    ) as score,
    cast(row_number() over (partition by list order by score desc, item) as integer) as rank
from imported
semi join batch_lists using (list)
qualify rank <= $candidates

-- name: create_facts
-- Evidence of each candidate in a batch: its links to the recent history.
create or replace table facts as
with linked as (
    select
        ranked.list,
        ranked.item,
        list({'item_id': left_items.item_id, 'after': times_after, 'before': times_before} order by recent.age) as links,
        coalesce(max(pairs.weight) filter (recent.age = 0), 0) as last_weight
    from ranked
    join recent using (list)
    join pairs on pairs.left_item = recent.item and pairs.right_item = ranked.item
    join catalogue as left_items on left_items.item = recent.item
    group by ranked.list, ranked.item
),
compared as (
    select
        ranked.list,
        ranked.item,
        coalesce(c.p1 = h.p1, false)::int + coalesce(c.p2 = h.p2, false)::int + coalesce(c.p3 = h.p3, false)::int
            + coalesce(c.p4 = h.p4, false)::int + coalesce(c.p5 = h.p5, false)::int + coalesce(c.p6 = h.p6, false)::int
            + coalesce(c.p7 = h.p7, false)::int + coalesce(c.p8 = h.p8, false)::int as depth,
        c.brand = h.brand as same_brand
    from ranked
    join recent using (list)
    join catalogue as c on c.item = ranked.item
    join catalogue as h on h.item = recent.item
),
shared as (
    select
        list,
        item,
        max(depth) as depth,
        count(*) filter (depth = deepest) as depth_items,
        count(*) filter (same_brand) as brand_items
    from (select *, max(depth) over (partition by list, item) as deepest from compared)
    group by list, item
)
select
    ranked.list,
    ranked.rank,
    catalogue.item_id,
    ranked.score,
    cast(coalesce(linked.last_weight, 0) as float) as last_weight,
    coalesce(linked.links, []) as links,
    catalogue.categories[:shared.depth] as shared_category,
    cast(case when shared.depth > 0 then shared.depth_items else 0 end as integer) as shared_category_items,
    cast(shared.brand_items as integer) as same_brand_items,
    cast(coalesce(popularity.bucket, 0) as integer) as popularity
from ranked
join catalogue using (item)
join shared using (list, item)
left join linked using (list, item)
left join popularity using (item)

-- name: catalogue_texts
select item_id, title, categories, brand, description from catalogue order by item

-- name: copurchase_counts
select left_item, right_item, times_after as times from pairs where times_after > 0 order by left_item, right_item

-- name: batch_histories
-- The items of the history, newest first, for lists with candidates.
select list, list(item order by age) as items from recent semi join ranked using (list) group by list order by list

-- name: batch_candidates
select list, list(item order by rank) as items from ranked group by list order by list

-- name: create_similarities
create or replace table similarities as from batch

-- name: create_made
create table made_lists (
    list_id varchar, dataset varchar, split varchar, user_id varchar, position integer, history varchar[],
    target_item_id varchar, item_ids varchar[], scores float[], target_rank integer, pre_ranker varchar, fold integer
);
create table made_evidence (
    list_id varchar, rank integer, item_id varchar, score float, last_weight float,
    links struct(item_id varchar, "after" integer, "before" integer)[], shared_category varchar[],
    shared_category_items integer, same_brand_items integer, popularity integer,
    text_last float, text_mean float, text_max float,
    copurchase_last float, copurchase_mean float, copurchase_max float
)

-- name: append_made_lists
insert into made_lists
with histories as (
    select list, list(item_id order by age desc) as history from recent join catalogue using (item) group by list
),
candidates as (
    select list, list(item_id order by rank) as item_ids, list(score order by rank) as scores from facts group by list
)
select
    md5(concat_ws(chr(31), $dataset, $pre_ranker, user_id, position)),
    $dataset,
    split,
    user_id,
    position,
    history,
    targets.item_id,
    coalesce(item_ids, []),
    coalesce(scores, []),
    nullif(list_position(item_ids, targets.item_id), 0),
    $pre_ranker,
    fold
from batch_lists
join histories using (list)
join catalogue as targets on targets.item = batch_lists.target
left join candidates using (list)

-- name: append_made_evidence
insert into made_evidence
select
    md5(concat_ws(chr(31), $dataset, $pre_ranker, user_id, position)),
    facts.* exclude (list),
    similarities.* exclude (list, rank)
from facts
join batch_lists using (list)
join similarities using (list, rank)

-- name: made_lists
from made_lists order by list_id

-- name: made_evidence
from made_evidence order by list_id, rank

-- name: different_lists
-- The number of lists of the same pre-ranker that the store has with other candidates.
select count(*)
from batch
join candidate_lists using (list_id)
where batch.item_ids <> candidate_lists.item_ids

-- name: lacks_similarities
-- A row if lists of this pre-ranker were stored by a version of gr2 without similarities.
select 1
from evidence
where text_last is null
    and list_id in (select list_id from candidate_lists where dataset = $dataset and pre_ranker = $pre_ranker)
limit 1

-- name: list_counts
select split, count(*) as lists, count(target_rank) as with_target from made_lists group by split
order by list_position(['train', 'valid', 'test'], split)

-- name: target_ranks
select coalesce(target_rank, 0) as rank from made_lists where split = $split

-- name: create_imported
-- Imported scores, each with its list and its problem, if it has one.
create table imported as
select
    batch.row,
    batch.user_id,
    batch.item_id,
    lists.list,
    catalogue.item,
    batch.score,
    case
        when catalogue.item is null then 'there is no such item in the dataset'
        when lists.list is null then 'there is no such user, or no target with a history there'
        when batch.score is null or not isfinite(batch.score) then 'the score is not a number'
        when count(*) over (partition by batch.row) > 1 then 'several targets fit; add a column position'
    end as problem
from batch
left join catalogue using (item_id)
left join lists
    on lists.user_id = batch.user_id
    and case when batch.position is null then lists.split = batch.split else lists.position = batch.position end

-- name: first_bad_score
select row, user_id, item_id, problem from imported where problem is not null order by row limit 1

-- name: drop_repeated_scores
-- Drop repetitions of a candidate in the same list. The best score is kept.
delete from imported
where row in (
    select row from imported qualify row_number() over (partition by list, item order by score desc, row) > 1
)

-- name: keep_imported_lists
delete from batch_lists where list not in (select list from imported)

-- name: known_lists
select split, count(*) as lists
from candidate_lists
where dataset = $dataset and pre_ranker = $pre_ranker
group by split
