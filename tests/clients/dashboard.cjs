// What the tests of the dashboard and the script for its screenshots share: a browser that is signed in.

'use strict';

const { chromium } = require('playwright-core');

const { SERVICE_URL, ADMIN_KEY, CHROMIUM = '/usr/bin/chromium' } = process.env;

const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 400, height: 860 };

// Starts Chromium. As root it has no sandbox, and containers have little shared memory.
const launch = () =>
  chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage'] });

// A page, and what its console says that it should not.
async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: WIDE, baseURL: SERVICE_URL, ...options });
  const page = await context.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(`${page.url()}: ${error}`));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) {
      errors.push(`${page.url()}: ${message.text()}`);
    }
  });
  return { page, errors };
}

async function signIn(page) {
  await page.goto('/dashboard/login');
  await page.getByLabel('Admin key').fill(ADMIN_KEY);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('heading', { level: 1, name: 'Overview' }).waitFor();
}

// Waits until the page is kept up to date.
const live = (page) => page.locator('#live-state.on').waitFor();

// Takes a picture of a page from its top, at most `most` pixels high, as WebP.
async function picture(page, most) {
  await page.evaluate(() => scrollTo(0, 0));
  const session = await page.context().newCDPSession(page);
  const { width } = page.viewportSize();
  const height = await page.evaluate(() => document.documentElement.scrollHeight);
  const clip = { x: 0, y: 0, width, height: Math.min(height, most), scale: 1 };
  const options = { format: 'webp', quality: 82, clip, captureBeyondViewport: true };
  const { data } = await session.send('Page.captureScreenshot', options);
  await session.detach();
  return Buffer.from(data, 'base64');
}

module.exports = { WIDE, NARROW, launch, open, signIn, live, picture };
