-- Rulesets: named, versioned lists of rules.

-- name: ruleset_list
-- The newest version of each ruleset, or every version if $all_versions is true.
select name, version, rules, description, created_at
from rulesets
where $all_versions or (name, version) in (select (name, version) from rulesets_current)
order by name, version desc

-- name: find_ruleset
-- One version of a ruleset, by default the version in force.
select name, version, rules, description
from rulesets
where name = $name
    and version = coalesce($version::integer, (select version from rulesets_current where name = $name))

-- name: ruleset_names
select name from rulesets_current order by name

-- name: append_rulesets
insert into rulesets by name from batch

-- name: pin_rulesets
-- From now on, the views of this connection use these versions, and the newest version of every other ruleset.
set variable pinned_rulesets = (select map($names::varchar[], $versions::integer[]))

-- name: ruleset_versions
select name, version from rulesets_current where list_contains($names, name) order by name

-- name: unjudged_traces
-- Parsed traces that lack the verdict of a rule of a ruleset. A completion that cannot be parsed is judged only by the
-- rule `parsed`.
with missing as (
    select outcome, unnest(list_filter(rules, lambda rule: not list_contains(passed_rules || failed_rules, rule))) as rule,
        name as ruleset, version
    from outcomes, rulesets_current
    where list_contains(passed_rules, 'parsed')
)
select dataset, ruleset, version, rule, sum(traces)::bigint as traces
from (select dataset, outcome, count(*) as traces from traces group by dataset, outcome)
join missing using (outcome)
where $dataset::varchar is null or dataset = $dataset
group by dataset, ruleset, version, rule
order by dataset, ruleset, rule

-- name: rules_of_rulesets
select distinct unnest(rules) as rule from rulesets_current order by rule
