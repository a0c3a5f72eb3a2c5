-- name: has_schema_tables
select 1 from duckdb_tables() where table_name = 'schema_state' and database_name = current_database()

-- name: labels_have_schema_tables
select 1 from duckdb_tables() where table_name = 'schema_state' and database_name = 'labels'

-- name: labels_schema_state
select state from labels.schema_state

-- name: schema_state
select state from schema_state

-- name: create_schema_migrations
create table if not exists schema_migrations (
    number integer not null, name varchar not null, applied_at timestamp not null
)

-- name: create_schema_state
create table if not exists schema_state (state varchar not null)

-- name: last_migration
select coalesce(max(number), 0) from schema_migrations

-- name: record_migration
insert into schema_migrations values ($number, $name, current_localtimestamp())

-- name: clear_schema_state
delete from schema_state

-- name: record_schema_state
insert into schema_state values ($state)
