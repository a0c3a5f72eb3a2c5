-- What rankers make of each list, how two of them differ, and where they are good.
create table rankings (
    run_id varchar not null,
    list_id varchar not null,
    ranker varchar not null,
    item_ids varchar[] not null,
    valid boolean not null
);

create table evaluation_differences (
    run_id varchar not null,
    dataset varchar not null,
    split varchar not null,
    ranker varchar not null,
    other varchar not null,
    metric varchar not null,
    value double not null,
    low double not null,
    high double not null,
    n bigint not null
);

create table evaluation_slices (
    run_id varchar not null,
    dataset varchar not null,
    split varchar not null,
    ranker varchar not null,
    slice varchar not null,
    bucket varchar not null,
    metric varchar not null,
    value double not null,
    low double not null,
    high double not null,
    n bigint not null
);
