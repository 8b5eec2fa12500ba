/* A stand-in for NVIDIA's management library: the real ABI, made-up GPUs. Built by cc in the tests.

   GPUS            how many there are (2)
   REFUSE          names of functions that answer NOT_SUPPORTED, in one string
   HOT             the last GPU is throttled by heat, at half its clock
   BUSY            the last GPU has a process of somebody else
   BUSY_HOLDS      its bytes (10 GiB); -1ull where they are not known
   MIG             the first GPU has one MIG instance
   XID             one XID 79 is reported, of the last GPU, if somebody listens to that
   DEAF            bits of the GPUs that refuse to be listened to (0)
   DRIVER          its version
   CUDA            the newest CUDA that it runs (12040: 12.4)
   NVLINKS         active links of each GPU to a switch (0)
   NO_P2P          why no pair has peer access, as nvmlGpuP2PStatus_t (0: it has)
   SICK            the last GPU has uncorrected memory errors and a row that waits for a reset
   WORN            the last GPU has a bad row that could not be replaced
   CAPABILITY      major and minor compute capability, as 90 (90)
   NAME            of the GPUs ("Stub GPU")
   INIT            what the library answers when it is started (0), as nvmlReturn_t: 9 without a driver, 18 mismatch
   LOST            bits of the GPUs that fell off the bus (0)
   DENIED          bits of the GPUs that this user may not use (0)

   A function that a test leaves out (-DNO_<name>) is not there at all, as in an older driver. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef GPUS
#define GPUS 2
#endif
#ifndef REFUSE
#define REFUSE ""
#endif
#ifndef DEAF
#define DEAF 0
#endif
#ifndef DRIVER
#define DRIVER "570.86.10"
#endif
#ifndef CUDA
#define CUDA 12080
#endif
#ifndef NVLINKS
#define NVLINKS 0
#endif
#ifndef NO_P2P
#define NO_P2P 0
#endif
#ifndef INIT
#define INIT 0
#endif
#ifndef BUSY_HOLDS
#define BUSY_HOLDS (10ull << 30)
#endif
#ifndef LOST
#define LOST 0
#endif
#ifndef DENIED
#define DENIED 0
#endif
#ifndef CAPABILITY
#define CAPABILITY 90
#endif
#ifdef SICK
#define IS_SICK(n) ((n) == GPUS - 1)
#else
#define IS_SICK(n) 0
#endif
#ifdef HOT
#define IS_HOT(n) ((n) == GPUS - 1)
#else
#define IS_HOT(n) 0
#endif

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7, TIMED_OUT = 10,
       IS_LOST = 15 };
typedef struct { int index, mig; } Device;
static Device devices[GPUS + 1];

#define ANSWER(name) \
  if (strstr(" " REFUSE " ", " " #name " ")) return NOT_SUPPORTED

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

int nvmlInitWithFlags(unsigned flags) {
  for (int n = 0; n <= GPUS; n++) devices[n] = (Device){n < GPUS ? n : 0, n == GPUS};
  return INIT;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) {
  switch (code) {
    case NOT_SUPPORTED: return "Not Supported";
    case TIMED_OUT: return "Timeout";
    case NOT_FOUND: return "Not Found";
    default: return "Unknown Error";
  }
}
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return snprintf(text, size, "%s", DRIVER), SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { return *count = GPUS, SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
  if (index >= GPUS) return INVALID;
  if (LOST & 1u << index) return IS_LOST;
  if (DENIED & 1u << index) return NO_PERMISSION;
  return *device = &devices[index], SUCCESS;
}
int nvmlDeviceGetUUID(Device *d, char *text, unsigned size) {
  snprintf(text, size, d->mig ? "MIG-0000-%d" : "GPU-0000-%d", d->index);
  return SUCCESS;
}
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
int nvmlDeviceGetPciInfo_v3(Device *d, Pci *pci) {
  ANSWER(nvmlDeviceGetPciInfo_v3);
  *pci = (Pci){.bus = 0x1a + d->index};
  return snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus), SUCCESS;
}
#ifndef NAME
#define NAME "Stub GPU"
#endif
int nvmlDeviceGetName(Device *d, char *text, unsigned size) {
  return snprintf(text, size, d->mig ? "Stub GPU MIG 1g.10gb" : NAME), SUCCESS;
}
int nvmlDeviceGetMigMode(Device *d, unsigned *now, unsigned *later) {
#ifdef MIG
  return *now = *later = d->index == 0, SUCCESS;
#else
  return NOT_SUPPORTED;
#endif
}
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *count) { return *count = 2, SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned n, Device **mig) {
  if (n) return NOT_FOUND;
  return *mig = &devices[GPUS], SUCCESS;
}
int nvmlDeviceGetUtilizationRates(Device *d, unsigned rates[2]) {
  ANSWER(nvmlDeviceGetUtilizationRates);
  if (d->mig) return NOT_SUPPORTED; /* as the real one */
  return rates[0] = 90, rates[1] = 40, SUCCESS;
}
int nvmlDeviceGetMemoryInfo(Device *d, unsigned long long sizes[3]) {
  ANSWER(nvmlDeviceGetMemoryInfo);
  return sizes[0] = 80ull << 30, sizes[1] = 60ull << 30, sizes[2] = 20ull << 30, SUCCESS;
}
#ifndef NO_nvmlDeviceGetPowerUsage
int nvmlDeviceGetPowerUsage(Device *d, unsigned *mw) {
  ANSWER(nvmlDeviceGetPowerUsage);
  return *mw = 400000, SUCCESS;
}
#endif
int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *mw) { return *mw = 700000, SUCCESS; }
int nvmlDeviceGetTotalEnergyConsumption(Device *d, unsigned long long *mj) {
  ANSWER(nvmlDeviceGetTotalEnergyConsumption);
  return *mj = (unsigned long long)(seconds() * 400000), SUCCESS;
}
int nvmlDeviceGetClockInfo(Device *d, int kind, unsigned *mhz) {
  ANSWER(nvmlDeviceGetClockInfo);
  return *mhz = kind == 1 ? (IS_HOT(d->index) ? 990 : 1980) : 2619, SUCCESS;
}
int nvmlDeviceGetMaxClockInfo(Device *d, int kind, unsigned *mhz) { return *mhz = 1980, SUCCESS; }
static int reasons(Device *d, unsigned long long *bits) {
  ANSWER(nvmlDeviceGetCurrentClocksEventReasons);
  return *bits = IS_HOT(d->index) ? 0x20 : 0, SUCCESS;
}
#ifndef NO_nvmlDeviceGetCurrentClocksEventReasons
int nvmlDeviceGetCurrentClocksEventReasons(Device *d, unsigned long long *bits) { return reasons(d, bits); }
#endif
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *bits) { return reasons(d, bits); }
int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *c) { return *c = IS_HOT(d->index) ? 91 : 55, SUCCESS; }
int nvmlDeviceGetPcieThroughput(Device *d, int counter, unsigned *kb) {
  ANSWER(nvmlDeviceGetPcieThroughput);
  return *kb = counter ? 3000 : 2000, SUCCESS;
}
int nvmlDeviceGetTotalEccErrors(Device *d, int type, int counter, unsigned long long *count) {
  ANSWER(nvmlDeviceGetTotalEccErrors);
  return *count = type ? 2 * IS_SICK(d->index) : 7, SUCCESS;
}
typedef struct {
  uint32_t field, scope;
  int64_t timestamp, latency;
  int32_t type, result;
  unsigned long long value;
} FieldValue;
int nvmlDeviceGetFieldValues(Device *d, int count, FieldValue *values) {
  for (int n = 0; n < count; n++) {
    values[n].result = strstr(REFUSE, "nvmlDeviceGetFieldValues") ? NOT_SUPPORTED : SUCCESS;
    values[n].value = 1000 + values[n].field;
  }
  return SUCCESS;
}
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, Process *found) {
  ANSWER(nvmlDeviceGetComputeRunningProcesses_v3);
  unsigned others = 0;
#ifdef BUSY
  others = d->index == GPUS - 1;
#endif
  if (!found || *count < 1 + others) return *count = 1 + others, TOO_SMALL;
  found[0] = (Process){(unsigned)getpid(), 20ull << 30, -1, -1};
  if (others) found[1] = (Process){4242, BUSY_HOLDS, -1, -1};
  return *count = 1 + others, SUCCESS;
}
int nvmlEventSetCreate(void **set) {
  ANSWER(nvmlEventSetCreate);
  return *set = devices, SUCCESS;
}
static unsigned heard; /* a bit a GPU */
int nvmlDeviceRegisterEvents(Device *d, unsigned long long kinds, void *set) {
  if (DEAF & 1u << d->index) return NOT_SUPPORTED;
  return heard |= 1u << d->index, SUCCESS;
}
int nvmlEventSetFree(void *set) { return SUCCESS; }
typedef struct { Device *device; unsigned long long kind, data; unsigned gpu_instance, compute_instance; } Event;
int nvmlEventSetWait_v2(void *set, Event *event, unsigned timeout_ms) {
#ifdef XID
  static int told;
  if (heard & 1u << (GPUS - 1) && !told++) return *event = (Event){&devices[GPUS - 1], 8, 79, -1, -1}, SUCCESS;
#endif
  return TIMED_OUT;
}

/* What is looked at before a run: versions, links, memory errors. */
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = CUDA, SUCCESS; }
int nvmlDeviceGetCudaComputeCapability(Device *d, int *major, int *minor) {
  return *major = CAPABILITY / 10, *minor = CAPABILITY % 10, SUCCESS;
}
int nvmlDeviceGetEccMode(Device *d, int *now, int *later) {
  ANSWER(nvmlDeviceGetEccMode);
  return *now = *later = 1, SUCCESS;
}
int nvmlDeviceGetRemappedRows(Device *d, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
  ANSWER(nvmlDeviceGetRemappedRows);
#ifdef WORN
  *failed = d->index == GPUS - 1;
#else
  *failed = 0;
#endif
  return *corrected = 0, *uncorrected = *pending = IS_SICK(d->index), SUCCESS;
}
int nvmlDeviceGetPowerManagementDefaultLimit(Device *d, unsigned *mw) { return *mw = 700000, SUCCESS; }
int nvmlDeviceGetCurrPcieLinkGeneration(Device *d, unsigned *n) { return *n = 1, SUCCESS; } /* idle GPUs lower it */
int nvmlDeviceGetMaxPcieLinkGeneration(Device *d, unsigned *n) { return *n = 5, SUCCESS; }
int nvmlDeviceGetCurrPcieLinkWidth(Device *d, unsigned *n) { return *n = IS_SICK(d->index) ? 4 : 16, SUCCESS; }
int nvmlDeviceGetMaxPcieLinkWidth(Device *d, unsigned *n) { return *n = 16, SUCCESS; }
int nvmlDeviceGetTopologyCommonAncestor(Device *a, Device *b, int *level) { return *level = 30, SUCCESS; }
int nvmlDeviceGetP2PStatus(Device *a, Device *b, int caps, int *status) {
  ANSWER(nvmlDeviceGetP2PStatus);
  return *status = caps == 2 && !NVLINKS ? 5 : NO_P2P, SUCCESS;
}
int nvmlDeviceGetNvLinkState(Device *d, unsigned link, unsigned *active) {
  if (link >= NVLINKS) return NOT_SUPPORTED;
  return *active = 1, SUCCESS;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(Device *d, unsigned link, int *kind) { return *kind = 2, SUCCESS; }
