/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef FERRY_SCAN_H
#define FERRY_SCAN_H

struct ferry_call;

int ferry_scan_run(struct ferry_call *call);

#endif
