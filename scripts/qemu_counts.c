// A plugin for QEMU's user mode that counts what a program executes from one write to its standard output to the
// next: a line for each such write, to the file that COUNTS names. scripts/neon_counts.py builds and reads it.
//
// Debian packages no header of QEMU's plugins; these are the functions that all versions since 4.2 have.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct qemu_plugin_tb;
typedef void (*translated)(uint64_t, struct qemu_plugin_tb *);
typedef void (*executed)(unsigned, void *);
typedef void (*called)(uint64_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t, translated);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed, int, void *);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t, called);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

int qemu_plugin_version = VERSION;
static uint64_t count;
static FILE *out;

static void add(unsigned cpu, void *instructions) { count += (uintptr_t)instructions; }

// A block of instructions is executed as a whole.
static void block(uint64_t id, struct qemu_plugin_tb *tb) {
    qemu_plugin_register_vcpu_tb_exec_cb(tb, add, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(tb));
}

enum { WRITE = 64, STDOUT = 1 };  // of Linux on aarch64

static void call(uint64_t id, unsigned cpu, int64_t number, uint64_t file, uint64_t b, uint64_t c, uint64_t d,
                 uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    if (number == WRITE && file == STDOUT) {
        fprintf(out, "%" PRIu64 "\n", count);
        fflush(out);
        count = 0;
    }
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    const char *path = getenv("COUNTS");
    out = path ? fopen(path, "w") : NULL;
    if (!out) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, block);
    qemu_plugin_register_vcpu_syscall_cb(id, call);
    return 0;
}
