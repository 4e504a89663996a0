/* The order of examples: every one once, another order each pass and seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "llmc_like/permute.h"

static void order_is_a_bijection_and_changes(void **state) {
    (void)state;
    for (uint64_t n = 1; n < 300; n += n < 20 ? 1 : 37) {
        int same = 0;
        for (uint64_t pass = 0; pass < 3; pass++) {
            bool seen[300] = {false};
            for (uint64_t i = 0; i < n; i++) {
                uint64_t to = permute(7, pass, n, i);
                assert_true(to < n && !seen[to]);
                seen[to] = true;
                same += permute(7, pass + 1, n, i) == to;
            }
        }
        if (n > 100) assert_true(same < 20);
    }
    assert_true(permute(1, 0, UINT64_C(1) << 40, 5) != permute(2, 0, UINT64_C(1) << 40, 5));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_is_a_bijection_and_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
