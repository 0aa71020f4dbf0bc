#!/bin/sh
# The same requests without any program of one's own: URL PROJECTS CONCURRENCY
set -e
fields='{"authType": "bearer", "authorization": "the-new-credential"}'
get="-sf -o /dev/null -H x-api-key:key"
seq -f "$1/external-support/prj_%.0f" "$2" | xargs -P "$3" -I URL curl $get URL
seq -f "$1/external-support/prj_%.0f" "$2" | xargs -P "$3" -I URL curl $get URL \
  --next $get -X PATCH -H Content-Type:application/json -d "$fields" URL --next $get URL
