-- Who works on which trace of a queue is an assignment.
alter table label_seats rename to label_assignments;
alter table label_assignments rename column taken_at to assigned_at;
