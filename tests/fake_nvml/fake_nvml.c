/* A stand-in for NVIDIA's management library: a scenario file says what each device does over time,
 * and a clock that the test moves says what time it is.
 *
 * Only the entry points that harness/meters/nvml.py uses exist; a symbol that is absent here is absent
 * for the binding too, as with an old driver. -DOLD_DRIVER leaves out what drivers before CUDA 11 lack.
 *
 * A quantity over time is a curve: "0:100 60:500" is linear between its points and constant outside.
 * The energy counter is the curve's exact integral, read at multiples of the update period.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, DENIED = 4, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15, UNKNOWN = 999 };
enum { POINTS = 256, DEVICES = 8, INSTANCES = 8, EVENTS = 8, METRICS = 6 };

typedef struct { int n; double t[POINTS], v[POINTS]; } Curve;

typedef struct Device Device;
struct Device {
    int is_mig;
    char uuid[96], name[96];
    Device *parent;
    unsigned gi, ci, sms;
    unsigned long long memory_total, memory_used;
    int major, minor;
    Curve power_w, clock_mhz, metric[METRICS];
    unsigned max_mhz, temperature_c, limit_w, gpu_pct, memory_pct;
    unsigned long long reasons;
    double energy0_mj, update_s, reset_at, lost_at, stall_from, stall_to, hiccup_from, hiccup_to;
    int stall_catches_up, gpm;
    char denied[128], lacking[128];
    Device *instances[INSTANCES];
    int n_instances;
};

typedef struct { Device *device; double t; } Sample;

static const char *METRIC_NAMES[METRICS] = {"sm", "tensor", "hmma", "dram", "fp32", "fp16"};
static const unsigned METRIC_IDS[METRICS] = {2, 5, 7, 10, 12, 13};

static Device pool[DEVICES + DEVICES * INSTANCES];
static Device *devices[DEVICES];
static int n_pool, n_devices, loaded, init_code;
static char driver[80] = "570.00.00";
static double clock_s, speed;
static struct timespec started;
static unsigned long calls;

/* -- the clock -------------------------------------------------------------------------------- */
static double now_s(void) {
    if (speed == 0) return clock_s;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return clock_s + speed * ((t.tv_sec - started.tv_sec) + 1e-9 * (t.tv_nsec - started.tv_nsec));
}
void fake_set_time(double seconds) { clock_s = seconds; speed = 0; }
void fake_run(double factor) { clock_s = now_s(); clock_gettime(CLOCK_MONOTONIC, &started); speed = factor; }
double fake_time(void) { return now_s(); }
unsigned long fake_calls(void) { return calls; }

/* -- curves ----------------------------------------------------------------------------------- */
static double value(const Curve *c, double t) {
    if (c->n == 0) return 0;
    if (t <= c->t[0]) return c->v[0];
    for (int i = 1; i < c->n; i++)
        if (t < c->t[i]) return c->v[i - 1] + (c->v[i] - c->v[i - 1]) * (t - c->t[i - 1]) / (c->t[i] - c->t[i - 1]);
    return c->v[c->n - 1];
}
static double integral(const Curve *c, double to) { /* from 0 */
    if (to <= 0 || c->n == 0) return 0;
    double sum = 0, at = 0, v = value(c, 0);
    for (int i = 0; i < c->n && c->t[i] <= to; i++) {
        if (c->t[i] <= at) { v = c->v[i]; continue; } /* a second point at one time is a step */
        sum += (c->t[i] - at) * (v + c->v[i]) / 2;
        at = c->t[i];
        v = c->v[i];
    }
    return sum + (to - at) * (v + value(c, to)) / 2;
}
static double counted_mj(const Device *d, double t) { /* what the counter's integrator saw since 0 */
    double e = integral(&d->power_w, t);
    if (d->stall_to > d->stall_from && t > d->stall_from) {
        double frozen = integral(&d->power_w, d->stall_from);
        if (t < d->stall_to) e = frozen;
        else if (!d->stall_catches_up) e -= integral(&d->power_w, d->stall_to) - frozen;
    }
    return 1000 * e;
}

/* -- the scenario ----------------------------------------------------------------------------- */
static void parse_curve(Curve *c, char *rest) {
    c->n = 0;
    for (char *p = strtok(rest, " "); p && c->n < POINTS; p = strtok(NULL, " "), c->n++)
        if (sscanf(p, "%lf:%lf", &c->t[c->n], &c->v[c->n]) != 2) { c->t[c->n] = 0; c->v[c->n] = atof(p); }
}
static Device *fresh(const char *uuid) {
    Device *d = &pool[n_pool++];
    memset(d, 0, sizeof *d);
    snprintf(d->uuid, sizeof d->uuid, "%s", uuid);
    d->update_s = 0.05; d->reset_at = d->lost_at = 1e18; d->major = 9; d->gpm = 1;
    d->temperature_c = 40; d->max_mhz = 1980; d->limit_w = 700; d->gpu_pct = 90; d->memory_pct = 30;
    d->memory_total = 80ull << 30; d->memory_used = 1ull << 30;
    return d;
}
static int parse_line(char *line, Device **current) {
    char key[64] = "";
    int used = 0;
    if (sscanf(line, "%63s %n", key, &used) < 1 || key[0] == '#') return 1;
    char *rest = line + used;
    Device *d = *current;
    if (!strcmp(key, "driver")) return snprintf(driver, sizeof driver, "%s", rest) > 0;
    if (!strcmp(key, "init")) return sscanf(rest, "%d", &init_code) == 1;
    if (!strcmp(key, "device")) {
        d = *current = devices[n_devices++] = fresh(rest);
        snprintf(d->name, sizeof d->name, "NVIDIA H100 80GB HBM3");
        return 1;
    }
    if (!d) return 0;
    if (!strcmp(key, "mig")) {
        char uuid[96];
        Device *m = NULL;
        unsigned gi, ci, sms;
        if (sscanf(rest, "%95s %u %u %u", uuid, &gi, &ci, &sms) != 4) return 0;
        m = d->instances[d->n_instances++] = fresh(uuid);
        m->is_mig = 1; m->parent = d; m->gi = gi; m->ci = ci; m->sms = sms;
        m->memory_total = d->memory_total * sms / 132; m->memory_used = 1ull << 28;
        snprintf(m->name, sizeof m->name, "%.80s MIG", d->name);
        return 1;
    }
    if (!strcmp(key, "name")) return snprintf(d->name, sizeof d->name, "%s", rest) > 0;
    if (!strcmp(key, "capability")) return sscanf(rest, "%d.%d", &d->major, &d->minor) == 2;
    if (!strcmp(key, "power_w")) return parse_curve(&d->power_w, rest), 1;
    if (!strcmp(key, "clock_mhz")) return parse_curve(&d->clock_mhz, rest), 1;
    if (!strcmp(key, "limit_w")) return sscanf(rest, "%u", &d->limit_w) == 1;
    if (!strcmp(key, "energy0_mj")) return sscanf(rest, "%lf", &d->energy0_mj) == 1;
    if (!strcmp(key, "update_s")) return sscanf(rest, "%lf", &d->update_s) == 1;
    if (!strcmp(key, "reset_at")) return sscanf(rest, "%lf", &d->reset_at) == 1;
    if (!strcmp(key, "lost_at")) return sscanf(rest, "%lf", &d->lost_at) == 1;
    if (!strcmp(key, "hiccup")) return sscanf(rest, "%lf %lf", &d->hiccup_from, &d->hiccup_to) == 2;
    if (!strcmp(key, "stall")) {
        d->stall_catches_up = strstr(rest, "catches_up") != NULL;
        return sscanf(rest, "%lf %lf", &d->stall_from, &d->stall_to) == 2;
    }
    if (!strcmp(key, "reasons")) return sscanf(rest, "%llx", &d->reasons) == 1;
    if (!strcmp(key, "no_gpm")) return d->gpm = 0, 1;
    if (!strcmp(key, "denied")) return snprintf(d->denied, sizeof d->denied, "%s", rest) > 0;
    if (!strcmp(key, "lacking")) return snprintf(d->lacking, sizeof d->lacking, "%s", rest) > 0;
    if (!strcmp(key, "gpm")) {
        char name[16];
        int skip = 0;
        if (sscanf(rest, "%15s %n", name, &skip) != 1) return 0;
        for (int i = 0; i < METRICS; i++)
            if (!strcmp(name, METRIC_NAMES[i])) return parse_curve(&d->metric[i], rest + skip), 1;
    }
    return 0;
}
static int load(void) {
    const char *path = getenv("FAKE_NVML_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[8192];
    Device *current = NULL;
    if (!file) return fprintf(stderr, "fake nvml: no scenario %s\n", path ? path : "(unset)"), UNKNOWN;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\r\n")] = 0;
        if (!parse_line(line, &current)) { fclose(file); return fprintf(stderr, "fake nvml: bad line: %s\n", line), UNKNOWN; }
    }
    fclose(file);
    loaded = 1;
    return OK;
}

/* -- what every query goes through ------------------------------------------------------------- */
static int lists(const char *words, const char *word) {
    char padded[160], needle[40];
    snprintf(padded, sizeof padded, " %s ", words);
    snprintf(needle, sizeof needle, " %s ", word);
    return strstr(padded, needle) != NULL;
}
static int check(const Device *d, const char *query) {
    double t = now_s();
    const Device *board = d && d->parent ? d->parent : d;
    calls++;
    if (!loaded) return UNINITIALIZED;
    if (!d) return INVALID;
    if (t >= board->lost_at) return LOST;
    if (t >= board->hiccup_from && t < board->hiccup_to) return TIMEOUT;
    if (lists(board->denied, query)) return DENIED;
    if (lists(board->lacking, query)) return UNSUPPORTED;
    return OK;
}
#define CHECK(d, query) do { int code_ = check(d, query); if (code_) return code_; } while (0)
#define BOARD_ONLY(d) do { if ((d)->is_mig) return UNSUPPORTED; } while (0)

/* -- the library -------------------------------------------------------------------------------- */
int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = loaded ? OK : load();
    return code ? code : init_code;
}
int nvmlShutdown(void) { return loaded ? OK : UNINITIALIZED; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake"; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { snprintf(out, n, "%s", driver); return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = n_devices; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, Device **out) {
    if (i >= (unsigned)n_devices) return INVALID;
    *out = devices[i];
    return check(*out, "handle");
}
int nvmlDeviceGetUUID(Device *d, char *out, unsigned n) { CHECK(d, "uuid"); snprintf(out, n, "%s", d->uuid); return OK; }
int nvmlDeviceGetName(Device *d, char *out, unsigned n) { CHECK(d, "name"); snprintf(out, n, "%s", d->name); return OK; }
int nvmlDeviceGetCudaComputeCapability(Device *d, int *major, int *minor) {
    CHECK(d, "capability"); BOARD_ONLY(d);
    *major = d->major; *minor = d->minor;
    return OK;
}
#ifndef OLD_DRIVER
int nvmlDeviceGetTotalEnergyConsumption(Device *d, unsigned long long *out) {
    CHECK(d, "energy"); BOARD_ONLY(d);
    double t = now_s();
    if (d->update_s > 0) t = d->update_s * (double)(long long)(t / d->update_s + 1e-9);
    double mj = t >= d->reset_at ? counted_mj(d, t) - counted_mj(d, d->reset_at) : d->energy0_mj + counted_mj(d, t);
    *out = (unsigned long long)mj;
    return OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(Device *d, unsigned long long *out) { CHECK(d, "reasons"); BOARD_ONLY(d); *out = d->reasons; return OK; }
typedef struct { unsigned version, sensor; int temperature; } Temperature;
int nvmlDeviceGetTemperatureV(Device *d, Temperature *out) { CHECK(d, "temperature"); BOARD_ONLY(d); out->temperature = (int)d->temperature_c; return OK; }
#else
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *out) { CHECK(d, "reasons"); BOARD_ONLY(d); *out = d->reasons; return OK; }
#endif
int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *out) { (void)sensor; CHECK(d, "temperature"); BOARD_ONLY(d); *out = d->temperature_c; return OK; }
int nvmlDeviceGetPowerUsage(Device *d, unsigned *out) { CHECK(d, "power"); BOARD_ONLY(d); *out = (unsigned)(1000 * value(&d->power_w, now_s()) + 0.5); return OK; }
int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *out) { CHECK(d, "limit"); BOARD_ONLY(d); *out = 1000 * d->limit_w; return OK; }
int nvmlDeviceGetClockInfo(Device *d, int type, unsigned *out) {
    (void)type;
    CHECK(d, "clock"); BOARD_ONLY(d);
    *out = d->clock_mhz.n ? (unsigned)(value(&d->clock_mhz, now_s()) + 0.5) : d->max_mhz;
    return OK;
}
int nvmlDeviceGetMaxClockInfo(Device *d, int type, unsigned *out) { (void)type; CHECK(d, "max_clock"); BOARD_ONLY(d); *out = d->max_mhz; return OK; }
int nvmlDeviceGetMemoryInfo(Device *d, unsigned long long *out) {
    CHECK(d, "memory");
    out[0] = d->memory_total; out[1] = d->memory_total - d->memory_used; out[2] = d->memory_used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(Device *d, unsigned *out) { CHECK(d, "utilisation"); BOARD_ONLY(d); out[0] = d->gpu_pct; out[1] = d->memory_pct; return OK; }

/* -- instances ---------------------------------------------------------------------------------- */
int nvmlDeviceGetMigMode(Device *d, unsigned *current, unsigned *pending) {
    CHECK(d, "mig"); BOARD_ONLY(d);
    if (d->major < 8) return UNSUPPORTED;
    *current = *pending = d->n_instances > 0;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *out) { CHECK(d, "mig"); *out = d->n_instances ? 7 : 0; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned i, Device **out) {
    CHECK(d, "mig");
    if (i >= (unsigned)d->n_instances) return NOT_FOUND;
    *out = d->instances[i];
    return OK;
}
int nvmlDeviceGetGpuInstanceId(Device *d, unsigned *out) { CHECK(d, "mig"); *out = d->gi; return d->is_mig ? OK : UNSUPPORTED; }
int nvmlDeviceGetComputeInstanceId(Device *d, unsigned *out) { CHECK(d, "mig"); *out = d->ci; return d->is_mig ? OK : UNSUPPORTED; }
typedef struct { unsigned sms, rest[7]; unsigned long long memory_mb; } Attributes;
int nvmlDeviceGetAttributes_v2(Device *d, Attributes *out) {
    CHECK(d, "mig");
    if (!d->is_mig) return UNSUPPORTED;
    memset(out, 0, sizeof *out);
    out->sms = d->sms; out->memory_mb = d->memory_total >> 20;
    return OK;
}

/* -- GPM ----------------------------------------------------------------------------------------- */
#ifndef OLD_DRIVER
typedef struct { unsigned version, supported; } Support;
typedef struct { unsigned id; int code; double value; const char *names[3]; } Metric;
typedef struct { unsigned version, n; Sample *a, *b; Metric metrics[]; } Metrics;
int nvmlGpmQueryDeviceSupport(Device *d, Support *out) { CHECK(d, "gpm"); out->supported = d->gpm && d->major >= 9; return OK; }
int nvmlGpmSampleAlloc(Sample **out) { *out = calloc(1, sizeof **out); return OK; }
int nvmlGpmSampleFree(Sample *s) { free(s); return OK; }
int nvmlGpmSampleGet(Device *d, Sample *s) {
    CHECK(d, "gpm");
    if (d->is_mig || !d->gpm) return UNSUPPORTED;
    s->device = d; s->t = now_s();
    return OK;
}
int nvmlGpmMigSampleGet(Device *d, unsigned gi, Sample *s) {
    CHECK(d, "gpm");
    for (int i = 0; i < d->n_instances; i++)
        if (d->instances[i]->gi == gi) { s->device = d->instances[i]; s->t = now_s(); return OK; }
    return NOT_FOUND;
}
int nvmlGpmMetricsGet(Metrics *m) {
    calls++;
    if (!m->a->device || m->a->device != m->b->device || m->b->t <= m->a->t) return INVALID;
    for (unsigned k = 0; k < m->n; k++) {
        Metric *metric = &m->metrics[k];
        metric->code = UNSUPPORTED;
        for (int i = 0; i < METRICS; i++) {
            const Device *d = m->a->device;
            const Curve *c = d->metric[i].n || !d->parent ? &d->metric[i] : &d->parent->metric[i];
            if (METRIC_IDS[i] != metric->id || c->n == 0) continue;
            metric->code = OK;
            metric->value = (integral(c, m->b->t) - integral(c, m->a->t)) / (m->b->t - m->a->t);
        }
    }
    return OK;
}
#endif
