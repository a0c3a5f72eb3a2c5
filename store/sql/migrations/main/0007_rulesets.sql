-- Rulesets are rows: each version of one is kept, so that what was decided under it can be decided again.
drop view if exists rulesets;

create table rulesets (
    name varchar not null,
    version integer not null,
    rules varchar[] not null,
    description varchar not null,
    created_at timestamp not null
);

insert into rulesets
select name, 1, rules, description, current_localtimestamp()
from (
    values
        ('answered', []::varchar[], 'Accepts every trace whose request was answered.'),
        (
            'paper', ['parsed', 'permutation', 'target_first'],
            'Rejection sampling as in the GR2 paper: the answer is a permutation that puts the target first.'
        ),
        (
            'strict',
            [
                'parsed', 'not_truncated', 'known_sids', 'permutation', 'target_first', 'cites', 'grounded', 'no_leak',
                'not_copied'
            ],
            'As paper, and the reasoning is complete, cites items, is true to the store and does not leak the target.'
        )
) as seeds(name, rules, description);

-- The ruleset under which a run decided whether it had enough accepted samples.
alter table traces add column ruleset varchar;
alter table traces add column ruleset_version integer;
update traces
set ruleset = if(settings ->> 'ruleset' = 'all', 'answered', settings ->> 'ruleset'), ruleset_version = 1
from runs
where traces.run_id = runs.run_id and settings ->> 'ruleset' is not null;
