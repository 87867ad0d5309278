/* A source of subordinate ids for shadow (nsswitch.conf: `subid: tst`), as SSSD is one.
 *
 * alice has 700000:1000 of each kind; of `down` it says that the service is out of reach, `slow`
 * it answers after half a minute, and nobody else is known. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum status { SUCCESS, UNKNOWN_USER, ERROR_CONN, ERROR };
enum kind { UID = 1, GID = 2 };
struct range {
    unsigned long start, count;
};

enum status shadow_subid_list_owner_ranges(const char *owner, enum kind kind, struct range **ranges, int *count)
{
    (void)kind;
    *count = 0;
    if (strcmp(owner, "slow") == 0)
        sleep(30);
    if (strcmp(owner, "down") == 0)
        return ERROR_CONN;
    if (strcmp(owner, "alice") != 0)
        return UNKNOWN_USER;
    *ranges = malloc(sizeof **ranges);
    if (!*ranges)
        return ERROR;
    **ranges = (struct range){700000, 1000};
    *count = 1;
    return SUCCESS;
}

enum status shadow_subid_has_range(const char *owner, unsigned long start, unsigned long count, enum kind kind, bool *has)
{
    (void)kind;
    *has = strcmp(owner, "alice") == 0 && start >= 700000 && start + count <= 701000;
    return SUCCESS;
}

enum status shadow_subid_find_subid_owners(unsigned long id, enum kind kind, uid_t **uids, int *count)
{
    (void)id, (void)kind;
    *uids = NULL;
    *count = 0;
    return SUCCESS;
}

void shadow_subid_free(void *memory)
{
    free(memory);
}
